"""Slow and obvious: one node, one edge, one tensor after the other, in float64."""

import torch

from phalanx.randomness import generator


def d_psgd(rows, weights, diffusion=1.0):
    """The weighted mean of the neighbours, entry by entry of the matrix."""
    return [
        x + diffusion * sum(weights[i, j] * (rows[j] - x) for j in range(len(rows)))
        for i, x in enumerate(rows)
    ]


class Choco:
    """Every node keeps a copy of every neighbour, as the paper's first algorithm has it."""

    def __init__(self, rows, weights, compress, rate):
        self.rows, self.weights, self.compress, self.rate = rows, weights, compress, rate
        self.copies = [[torch.zeros_like(x) for x in rows] for _ in rows]

    def round(self):
        told = [self.compress(x - self.copies[i][i]) for i, x in enumerate(self.rows)]
        for i, row in enumerate(self.copies):
            for j in range(len(row)):
                row[j] = row[j] + told[j]
            pull = sum(self.weights[i, j] * (row[j] - row[i]) for j in range(len(row)))
            self.rows[i] = self.rows[i] + self.rate * pull


class Squeeze:
    """DeepSqueeze as it is written down."""

    def __init__(self, rows, weights, compress, rate):
        self.rows, self.weights, self.compress, self.rate = rows, weights, compress, rate
        self.left = [torch.zeros_like(x) for x in rows]

    def round(self):
        wanted = [x + left for x, left in zip(self.rows, self.left, strict=True)]
        told = [self.compress(x) for x in wanted]
        self.left = [x - sent for x, sent in zip(wanted, told, strict=True)]
        for i in range(len(told)):
            pull = sum(self.weights[i, j] * (told[j] - told[i]) for j in range(len(told)))
            self.rows[i] = self.rows[i] + self.rate * pull


class Power:
    """One pair of factors an edge; the difference itself is computed, which no node could."""

    def __init__(self, rows, topology, rank, diffusion, seed, name, signs=False):
        self.rows, self.topology, self.rank, self.diffusion = rows, topology, rank, diffusion
        self.seed, self.name, self.turn, self.signs = seed, name, 0, signs
        self.factors = {edge: [None, None] for edge in topology.edges}

    def drawn(self, edge, size):
        source = generator(self.seed, "gossip", self.turn, self.name, "factor", self.turn, *edge)
        return torch.randn(size, self.rank, generator=source, dtype=self.rows[0].dtype)

    def round(self):
        before, side = [x.clone() for x in self.rows], self.turn % 2
        for edge, weight in zip(self.topology.edges, self.topology.edge_weights, strict=True):
            low, high = edge
            difference = before[high] - before[low]
            matrix = difference if side == 0 else difference.T
            factor = self.factors[edge][side]
            if factor is None:
                factor = self.drawn(edge, len(matrix))
            fixed = torch.linalg.svd(factor, full_matrices=False).U
            if self.signs:
                fixed = torch.sign(factor) / len(factor) ** 0.5
            learnt = matrix.T @ fixed
            move = fixed @ learnt.T if side == 0 else learnt @ fixed.T
            self.rows[high] = self.rows[high] - self.diffusion * weight * move
            self.rows[low] = self.rows[low] + self.diffusion * weight * move
            self.factors[edge][1 - side] = learnt
        self.turn += 1


def moniqua(rows, weights, circumference, places, shift, rate):
    """Values as places on a circle, each read as the value there that is closest to the reader."""
    told = [((x / circumference) % 1 * places + shift).floor() % places for x in rows]

    def taken_for(place, reader):
        turns = (reader / circumference - place / places).round()
        return (place / places + turns) * circumference

    return [
        x
        + rate
        * sum(
            weights[i, j] * (taken_for(told[j], x) - taken_for(told[i], x))
            for j in range(len(told))
        )
        for i, x in enumerate(rows)
    ]

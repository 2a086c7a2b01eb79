"""`phalanx fuse`: checkpoints in, one checkpoint out."""

import torch
from safetensors.torch import load_file

from phalanx.models import MLP
from phalanx.randomness import seeded


def write(path, *hidden):
    with seeded(str(path)):
        torch.save(MLP((1, 8, 8), 10, hidden=hidden).state_dict(), path)


def test_checkpoints_of_several_widths_become_one(phalanx, tmp_path):
    write(tmp_path / "a.pt", 16)
    write(tmp_path / "b.pt", 12)
    words = ("fuse", "a.pt", "b.pt", "--matching.max_width", 1, "--out")
    for out, read in (("c.pt", torch.load), ("c.safetensors", load_file)):
        code, said, err = phalanx(*words, out)
        assert (code, err) == (0, "")
        assert f"{out}: hidden layers [16], test accuracy" in said
        assert read(tmp_path / out)["layers.1.weight"].shape == (16, 64)
    assert phalanx("fuse", "c.pt", "c.safetensors")[0] == 0


def test_bad_input_is_a_line_and_exit_code_2(phalanx, tmp_path):
    write(tmp_path / "a.pt", 16)
    torch.save([1], tmp_path / "list.pt")
    (tmp_path / "text.pt").write_text("no checkpoint")
    for words, reason in (
        (("list.pt",), "state dictionaries, list.pt"),
        (("text.pt",), "files of tensors, which text.pt is not"),
        (("none.pt",), "none.pt: No such file"),
        (("a.pt", "--model", "LeNet"), "a.pt differs in ['convolutions.0.bias'"),
        (("a.pt", "--matching.mass", 0), "mass must be finite and above 0, got 0"),
    ):
        code, _, err = phalanx("fuse", *words)
        assert code == 2, words
        assert reason in " ".join(err.split()), err

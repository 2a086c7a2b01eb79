"""Small reference models. Any `nn.Module` does; these are for demos, tests and comparisons."""

from phalanx.models.gpt import GPT
from phalanx.models.le_net import LeNet
from phalanx.models.mlp import MLP
from phalanx.models.res_net18 import ResNet18
from phalanx.models.softmax import Softmax
from phalanx.models.text_classifier import TextClassifier

__all__ = ["GPT", "MLP", "LeNet", "ResNet18", "Softmax", "TextClassifier"]

"""What a runtime offers to ``verify`` and ``bench``: how it is found, loaded, asked and timed."""

from __future__ import annotations

import importlib
import importlib.util
from abc import ABC, abstractmethod
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from phiquant.errors import UnsupportedError

Self = TypeVar("Self", bound="LoadedModel")


class LoadedModel(ABC):
    """A model in its runtime, ready to answer; a context manager that frees it.

    Attributes
    ----------
    vocabulary : int
        Logits of a position.
    longest : int or None
        Tokens of the longest sequence that the model is made for; None where the runtime does not
        tell.
    kv_bytes_per_token : int or None
        Bytes that keys and values of one token take in the cache as it is now, all layers
        together; None where the runtime does not tell.
    """

    vocabulary: int
    longest: int | None
    kv_bytes_per_token: int | None

    @abstractmethod
    def tokenize(self, text: str) -> list[int]:
        """Tokens of a text as the runtime makes them, with a BOS where it begins texts with one.

        What looks like a special token in the text is plain text.
        """

    @abstractmethod
    def logits(self, ids: NDArray[np.integer], last: int) -> NDArray[np.float32]:
        """Logits of the ``last`` last positions of a fresh sequence.

        Parameters
        ----------
        ids : integer array, shape (length,)
        last : int
            Up to the length.

        Returns
        -------
        float32 array, shape (last, vocabulary)

        Raises
        ------
        phiquant.FormatError
            The runtime cannot run the model.
        """

    @abstractmethod
    def start(self, ids: NDArray[np.integer]) -> int:
        """Read a prompt as a fresh sequence in one piece; gives the most likely next token.

        This and :meth:`step` are what ``bench`` times: they return when the answer is there, and do
        nothing that generating text does not need.
        """

    @abstractmethod
    def step(self, token: int) -> int:
        """Append a token to the sequence of :meth:`start`; gives the most likely next one."""

    @abstractmethod
    def close(self) -> None:
        """Free the model. May be called again."""

    def greedy(self, ids: NDArray[np.integer], count: int) -> list[int]:
        """The ``count`` tokens that follow a prompt, each the most likely one."""
        if count < 1:
            return []
        found = [self.start(ids)]
        while len(found) < count:
            found.append(self.step(found[-1]))
        return found

    def __enter__(self: Self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


class Runtime(ABC):
    """A program that runs outputs of one kind. Its module has one, named ``RUNTIME``.

    Attributes
    ----------
    name : str
        ``llama.cpp``.
    runs : str
        What it runs, in the plural: ``GGUF files``.
    distribution, module : str
        The Python package that must be installed, as pip and as ``import`` name it.
    extra : str
        phiquant's extra that installs it: ``llama`` for ``phiquant[llama]``.
    divergence : float
        Largest mean Kullback-Leibler divergence, in nats, between a sound output's logits here
        (loaded with ``exact``) and those of the same weights in float32.
    arithmetic : str
        Where that comes from, as ``verify`` says it: ``llama.cpp rounds activations``.
    odd_tokens : float
        Largest share of a text's tokens that this runtime is known to make otherwise than
        ``tokenizer.json`` says.
    """

    name: str
    runs: str
    distribution: str
    module: str
    extra: str
    divergence: float
    arithmetic: str
    odd_tokens: float = 0.0

    @abstractmethod
    def recognizes(self, path: Path) -> bool:
        """Whether this runs what stands there, from names and first bytes alone.

        Never raises for a path that exists; at most one runtime recognizes any path.
        """

    @abstractmethod
    def load(self, path: Path, *, context: int, threads: int, exact: bool) -> LoadedModel:
        """Load an output, on processors alone.

        Parameters
        ----------
        path : Path
        context : int
            Tokens that a sequence may have.
        threads : int
        exact : bool
            True: the most exact arithmetic that the runtime offers (a float32 KV cache), for
            comparing. False: what its users get if they ask for nothing.

        Raises
        ------
        phiquant.UnsupportedError
            The runtime is not installed.
        phiquant.FormatError
            It does not load the file; its words are in the error.
        """

    @property
    def install(self) -> str:
        """The command that installs it."""
        return f"pip install 'phiquant[{self.extra}]'"

    def require(self) -> None:
        """See that the Python package is installed, without importing it.

        Raises
        ------
        phiquant.UnsupportedError
            It is not; the error has the command that installs it.
        """
        try:
            found = importlib.util.find_spec(self.module.split(".")[0])
        except ValueError:  # a module without a spec stands in its place
            found = None
        if found is None:
            raise self._missing()

    def package(self) -> Any:
        """Import and give the Python package.

        Raises
        ------
        phiquant.UnsupportedError
            It is not installed, or cannot be imported.
        """
        try:
            return importlib.import_module(self.module)
        except ModuleNotFoundError as error:
            if (error.name or "").split(".")[0] == self.module.split(".")[0]:
                raise self._missing() from None
            raise self._broken(error) from error
        except Exception as error:  # packages with libraries of their own raise whatever they like
            raise self._broken(error) from error

    def _missing(self) -> UnsupportedError:
        return UnsupportedError(
            f"{self.distribution} is not installed, and it runs {self.runs}",
            remedy=f"Install it: {self.install}",
        )

    def _broken(self, error: Exception) -> UnsupportedError:
        words = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        return UnsupportedError(
            f"{self.distribution} runs {self.runs}, and cannot be imported here: {words}",
            remedy=f"Install it again: {self.install}",
        )

    def version(self) -> str:
        """Name and version as results state them.

        Raises
        ------
        phiquant.UnsupportedError
            It is not installed.
        """
        from importlib import metadata

        self.package()
        return f"{self.name} ({self.distribution} {metadata.version(self.distribution)})"

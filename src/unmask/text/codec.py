"""str <-> ids for one checkpoint.

Enters: text or chat messages. Leaves: ids, and text again. Encoding adds nothing: no BOS, no EOS, no padding; a chat
template writes what it wants itself. Special tokens typed inside a text are read as special tokens, as the published
tokenizers do; a mask token typed in a prompt is no hole to the decoder, which knows holes by position, not by id.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from unmask.core.errors import RequestError
from unmask.text.chat_template import Message, render
from unmask.text.files import TokenizerFiles, read_tokenizer


class Codec:
    """The tokenizer and chat template of a checkpoint. Immutable once made."""

    def __init__(self, files: TokenizerFiles) -> None:
        self._backend, self._files = files.backend, files
        added = self._backend.get_added_tokens_decoder()
        self.special_ids = frozenset(i for i, token in added.items() if token.special)

    @classmethod
    def from_dir(cls, path: str | Path) -> Codec:
        """The codec of a checkpoint directory.

        Raises:
            CheckpointError: no tokenizer there, or one that cannot be read.
        """
        return cls(read_tokenizer(Path(path)))

    # ---- in ----------------------------------------------------------------------------------------------------------

    def encode(self, text: str) -> list[int]:
        """Ids of a text, nothing added.

        Raises:
            RequestError: text that is no valid Unicode (bytes of another encoding read as text).
        """
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            got = f"a broken character at index {error.start}"
            raise RequestError(
                "text", expected="valid Unicode", got=got, remedy="Convert the input to UTF-8."
            ) from None
        return list(self._backend.encode(text, add_special_tokens=False).ids)

    @property
    def has_template(self) -> bool:
        """Whether the checkpoint says how a conversation is written."""
        return "default" in self._files.templates

    @property
    def template(self) -> str | None:
        """The chat template's own text."""
        return self._files.templates.get("default")

    def render_chat(self, messages: Sequence[Message], add_generation_prompt: bool = True) -> str:
        """The conversation as text.

        Raises:
            RequestError: no template, or messages it refuses.
        """
        if not self.has_template:
            remedy = "Use the raw form (--raw, chat=False), or a checkpoint with a template."
            raise RequestError("chat", expected="a checkpoint with a chat template", got="none here", remedy=remedy)
        special = {**self._files.named, "additional_special_tokens": list(self._files.extra)}
        return render(self._files.templates["default"], messages, special, add_generation_prompt)

    def encode_chat(self, messages: Sequence[Message]) -> list[int]:
        """Ids of a conversation up to the place where the assistant answers."""
        return self.encode(self.render_chat(messages))

    # ---- out ---------------------------------------------------------------------------------------------------------

    def decode(self, ids: Iterable[int], skip_special: bool = True) -> str:
        """The text of ids; ids the tokenizer does not know are silent."""
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special))

    def piece(self, token: int) -> str:
        """One token as a cell shows it: special tokens by name, a leading space kept, half a character as U+FFFD."""
        text = self.decode([token], skip_special=False)
        name = self._backend.id_to_token(token)
        starts_word = name is not None and name.startswith("▁") and not text.startswith(" ")
        return f" {text}" if starts_word else text

    # ---- questions ---------------------------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Number of tokens, added ones included."""
        return int(self._backend.get_vocab_size(with_added_tokens=True))

    def token_id(self, token: str) -> int | None:
        """The id of a token by its exact name, None when there is none."""
        found: int | None = self._backend.token_to_id(token)
        return found

    def named(self, role: str) -> int | None:
        """The id of a named special token, such as "bos_token"."""
        name = self._files.named.get(role)
        return None if name is None else self.token_id(name)

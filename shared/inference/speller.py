"""The tokens of texts, told one by one and uncut, and the texts of ids: what /tokenize and /decode ask.

Does not know what a model reads of a text, nor engines.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import partial

from tokenizers import Tokenizer as HfTokenizer

from shared.errors import InvalidInput
from shared.inference.long_texts import SLICE_CHARACTERS, LongTexts, each, grouped
from shared.inference.spelling import Spelling, joined, special_around, spelling_of
from shared.inference.steps import Steps
from shared.request_size import check_characters, check_tokens


class Speller:
    """Of one tokenizer, which does not truncate. Thread-safe."""

    def __init__(self, tokenizer: HfTokenizer, long: LongTexts) -> None:
        self._tokenizer = tokenizer
        self._long = long

    def spell(
        self, texts: Sequence[str], *, limit: int, prefix: str = "", special_tokens: bool = True
    ) -> Steps[list[Spelling]]:
        """The tokens of each text, `prefix` before it, uncut. special_tokens: also those of no text.

        Raises PayloadTooLarge once there are more than `limit` tokens.
        """
        batch = partial(self._tokenizer.encode_batch, add_special_tokens=special_tokens)
        result: list[Spelling] = []
        room = limit
        whole = {f"inputs[{n}]": prefix + text for n, text in enumerate(texts)}
        for group in grouped(whole, most=SLICE_CHARACTERS + 1):
            ((field, text), *others) = group.items()
            if not others and len(text) > SLICE_CHARACTERS:
                spellings = [(yield from self._spell_long(text, field, room, limit, special_tokens))]
            else:
                encodings = each(batch, [*group.values()], [*group])
                spellings = [spelling_of(*one) for one in zip(group.values(), encodings, strict=True)]
                yield
            room = _room_after(spellings, room, limit)
            result += spellings
        return result

    def decode(
        self, inputs: Sequence[Sequence[int]], *, limit: int, skip_special_tokens: bool = True
    ) -> Steps[list[str]]:
        """The text of each list of ids, as the library tells it. A step is an input.

        Raises InvalidInput for an id that is none, which the library would pass over, and
        PayloadTooLarge for more than `limit` ids, or texts longer than so many tokens ever have.
        """
        check_tokens(sum(map(len, inputs)), limit, "ids")
        batch = partial(self._tokenizer.decode_batch, skip_special_tokens=skip_special_tokens)
        texts: list[str] = []
        characters = 0
        for index, ids in enumerate(inputs):
            field = f"ids[{index}]"
            for token, times in Counter(ids).items():
                name = self._tokenizer.id_to_token(token) if 0 <= token < 2**32 else None
                if name is None:
                    raise InvalidInput(f"this model's vocabulary has no id {token}", field=field)
                characters += len(name) * times
            check_characters(characters, limit, "ids")
            texts += each(batch, [list(ids)], [field])
            yield
        return texts

    def _spell_long(
        self, text: str, field: str, room: int, limit: int, special_tokens: bool
    ) -> Steps[Spelling]:
        spellings: list[Spelling] = []
        before = after = None
        begun = byte = 0
        for encoding, first, begin in self._long.windows(text, field):
            window = text[begin : begin + max((stop for _, stop in encoding.offsets), default=0)]
            if special_tokens and not spellings:
                wrapped = self._tokenizer.post_process(encoding)
                before, after = special_around(spelling_of(window, wrapped))
            byte, begun = byte + len(text[begun:begin].encode()), begin
            spellings.append(spelling_of(window, encoding).between(first, len(encoding)).moved(byte))
            room = _room_after(spellings[-1:], room, limit)
            yield
        return joined([spelled for spelled in (before, *spellings, after) if spelled is not None])


def _room_after(spellings: Sequence[Spelling], room: int, limit: int) -> int:
    """How many tokens there may be yet. Raises PayloadTooLarge."""
    room -= sum(map(len, spellings))
    check_tokens(limit - room, limit, "inputs", counted_all=False)
    return room

"""What a plan is made of where a run's model, tokenizer, examples or problems are not here: something like them.

Each such assumption is said.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cca.errors import InputError
from cca.problems.examples import load_examples
from cca.problems.prompts import Prompter, PromptOptions
from cca.problems.splits import ProblemOptions
from cca.records import Problem, Split
from cca.run.config import Config
from cca.run.plan import Basis, Group, basis_of, groups_of
from cca.run.problems import target_source
from cca.run.shape import config_at, known_config

if TYPE_CHECKING:
    from cca.problems.sources import Source

_EXAMPLE = 100
"""Tokens of a worked example that cannot be read: the eight of gsm8k_cot have 98 in the mean."""
_QUESTION = 90
"""Tokens of a question that cannot be read."""


@dataclass(frozen=True)
class Stated:
    """What somebody says of a run in place of what would be read. problems: to train on. shape: a known model's name or
    a config.json's. prompt_tokens: of a whole prompt; shared_tokens: of the start that all have in common."""

    problems: int | None = None
    shape: str | None = None
    prompt_tokens: int | None = None
    shared_tokens: int | None = None


NOTHING = Stated()


class StandIn(NamedTuple):
    """What a plan is made of, and what was assumed for that."""

    basis: Basis
    assumed: list[str]


def stand_in(config: Config, stated: Stated) -> StandIn:
    """What a plan of `config` is made of, with something in the place of each part that is not here.

    Raises:
        InputError: nothing is known of the model, or what is stated cannot be.
    """
    assumed: list[str] = []
    model_config, prompter = _model_config(config, stated, assumed), _prompter(config, assumed)
    groups = _groups(config, assumed)
    if stated.problems is not None:
        groups = _scaled(groups, stated.problems)
    return StandIn(_with_tokens(basis_of(config, model_config, prompter, groups), stated), assumed)


def _model_config(config: Config, stated: Stated, assumed: list[str]) -> Any:
    from cca.model.bundled import location
    from cca.model.checks import check_model

    path = config.model.path
    if stated.shape:
        assumed.append(f"a model of the shape of {stated.shape}")
        return config_at(stated.shape)
    if not Path(location(path)).exists() and (found := known_config(path)) is not None:
        assumed.append(f"the sizes of {path} as published")
        return found
    try:
        return check_model(path, trust_remote_code=config.model.trust_remote_code, weights=False)
    except InputError as error:
        raise InputError(
            f"{error}; to plan without it name its sizes: --shape, a known model or a config.json"
        ) from error


class Words:
    """Counts tokens where a model's tokenizer is not here: words with their space, digits one by one, and signs.

    On worked solutions of sums within a twentieth of Qwen's tokenizer.
    """

    _PIECES = re.compile(r" ?[^\W\d_]{1,9}|[^\W\d_]+|\d| ?[^\w\s]|_|\s+")

    def __init__(self) -> None:
        self.known: dict[str, int] = {"": 0}
        self.all_special_ids, self.special_tokens_map, self.added_tokens_decoder = [0], {}, dict[int, Any]()
        self.eos_token_id, self.texts = 0, [""]

    def __len__(self) -> int:
        return len(self.known)

    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        """Ids of the pieces, each a new one where it was not met before."""
        del add_special_tokens
        found: list[int] = []
        for piece in self._PIECES.findall(text):
            if piece not in self.known:
                self.known[piece] = len(self.known)
                self.texts.append(piece)
            found.append(self.known[piece])
        return found

    def decode(self, ids: Sequence[int], **_: Any) -> str:
        """The text of `ids`."""
        return "".join(self.texts[i] for i in ids)

    def convert_ids_to_tokens(self, token: int) -> str:
        """The piece that an id is of."""
        return self.texts[token]


def _prompter(config: Config, assumed: list[str]) -> Prompter:
    """How problems become prompts; with words for tokens where the tokenizer is not here."""
    from cca.model.bundled import location
    from cca.model.open import open_prompter

    options, where = config.prompt, config.model.tokenizer or config.model.path
    if Path(location(where)).exists():
        try:
            return open_prompter(config.model, options, config.problems.grader)
        except InputError as error:
            assumed.append(f"tokens counted by words, since {error}")
    else:
        assumed.append("tokens counted by words: the tokenizer is not here")
    try:
        examples = load_examples(options)
    except InputError as error:
        assumed.append(f"worked examples of {_EXAMPLE} tokens each, since {error}")
        options = options.changed({"preamble": " ".join(["word"] * _EXAMPLE * options.shots), "replace": {}})
        examples = ()
    if options.style == "chat":
        assumed.append("a chat template adds nothing to a prompt")
    style = "few-shot" if options.shots else "plain"
    asked = PromptOptions(
        style=style if examples else "plain",
        template=options.template if options.template or options.style != "chat" else "{question}",
        preamble=options.preamble,
        separator=options.separator,
        shots=options.shots if examples else 0,
        examples=options.examples if examples else "",
    )
    return Prompter.of(Words(), asked, examples, end_tokens=frozenset({0}), end_token=0)


def _groups(config: Config, assumed: list[str]) -> list[Group]:
    try:
        load_examples(config.prompt)
    except InputError:  # said of the prompts; which problems they show, and would be left out for it, nobody knows
        config = config.model_copy(update={"prompt": PromptOptions()})
    try:
        return groups_of(config, _source(config, assumed))
    except InputError as error:
        assumed.append(f"one template, and questions of {_QUESTION} tokens, since {error}")
        wanted: Mapping[Split, int] = config.problems.counts()
        question = " ".join(["word"] * _QUESTION)
        return [
            Group(split, [Problem(f"{split}-{n}", "?", n, split, f"{n} {question}", "1", "") for n in range(2)], count)
            for split, count in wanted.items()
        ]


def _source(config: Config, assumed: list[str]) -> "Source":
    """The source of the config, where it is here, and GSM-Symbolic's own templates for that data set of the hub."""
    options = config.problems
    name = options.source.lower()
    if "gsm-symbolic" in name and name != "gsm-symbolic" and not Path(options.source).exists():
        assumed.append(f"problems of reasoning-gym's templates for those of {options.source}")
        like = ProblemOptions(**{**options.model_dump(), "source": "gsm-symbolic", "columns": {}})  # pyright: ignore
        return target_source(config.model_copy(update={"problems": like}))
    return target_source(config)


def _scaled(groups: Sequence[Group], problems: int) -> list[Group]:
    """The same groups with so many problems to train on, and the others as they are.

    Raises:
        InputError: there are none.
    """
    train = sum(group.size for group in groups if group.split == "train")
    if problems < 1 or not train:
        raise InputError(f"--problems {problems}: a run needs at least one problem to train on")
    return [
        group._replace(size=max(1, round(group.size * problems / train))) if group.split == "train" else group
        for group in groups
    ]


def _with_tokens(of: Basis, stated: Stated) -> Basis:
    """With the lengths of prompts that are stated.

    Raises:
        InputError: more tokens are shared than a prompt has.
    """
    lengths, prompts = of.lengths, of.work.prompt_tokens
    whole = lengths.shared + lengths.prompt if stated.prompt_tokens is None else stated.prompt_tokens
    shared = min(lengths.shared, whole - 1) if stated.shared_tokens is None else stated.shared_tokens
    if not 0 <= shared < whole:
        raise InputError(
            f"--shared-tokens {shared}: prompts have {whole:.0f} tokens in all; state fewer of them as shared"
        )
    longest = round(prompts.longest * whole / (lengths.shared + lengths.prompt))
    told = replace(prompts, mean=whole, longest=longest, shared=round(shared))
    return of._replace(
        lengths=lengths._replace(shared=shared, prompt=whole - shared), work=replace(of.work, prompt_tokens=told)
    )

"""Question answering: scores, compared with SQuAD's evaluation; prompts that fit the model; bad files."""

import json
import types

import pytest
import torch

from mt.core.config import UserError, build
from mt.eval.lm import LanguageModel
from mt.eval.tasks import open_qa as module
from mt.eval.tasks.open_qa import QaConfig, f1, normalize, qa, score
from mt.tests.eval.conftest import ByteTokenizer

PAIRS = [
    ("The Eiffel Tower!", "eiffel  tower"), ("Paris, France", "Paris"), ("a cat and a cat", "the cat"),
    ("U.S.", "us"), ("don't  know", "dont know"), ("twenty-one", "twenty one"), ("no", "yes"),
    ("Beyonc\u00e9", "beyonc\u00e9 knowles"), ("an\nanswer", "answer"), ("theatre a", "Theatre"),
]  # fmt: skip


@pytest.mark.parametrize(("prediction", "answer"), PAIRS)
def test_scores_are_those_of_squads_evaluation_in_lm_eval(prediction, answer):
    squad = pytest.importorskip("lm_eval.tasks.tydiqa.utils")
    assert normalize(prediction) == squad.normalize_answer(prediction, "en")
    assert f1(prediction, answer) == pytest.approx(squad.f1_score(prediction, answer, "en"))
    answers = ("nothing of the kind", answer)
    assert score(prediction, answers) == {
        "exact_match": float(
            squad.metric_max_over_ground_truths(squad.exact_match_score, prediction, answers, "en")
        ),
        "f1": pytest.approx(squad.metric_max_over_ground_truths(squad.f1_score, prediction, answers, "en")),
        "f1_first_answer": pytest.approx(squad.f1_score(prediction, answers[0], "en")),
    }


def test_f1_of_a_text_without_words_is_1_only_if_both_have_none():
    """As in SQuAD 2.0's evaluation."""
    assert (f1("", ""), f1("the", "a!"), f1("", "x"), f1("x", "the")) == (1, 1, 0, 0)


class Parrot(torch.nn.Module):
    """Continues known prompts with their answers; ends the document after every other prompt."""

    def __init__(self, known: dict[str, str]):
        super().__init__()
        self.next, self.unused = {}, torch.nn.Parameter(torch.zeros(1))
        for prompt, answer in known.items():
            ids = [*prompt.encode(), *answer.encode(), 256]
            self.next |= {
                tuple(ids[max(0, i - 40) : i]): ids[i] for i in range(len(prompt.encode()), len(ids))
            }

    def new_cache(self, batch, max_length):
        return types.SimpleNamespace(tokens=torch.zeros((batch, max_length), dtype=torch.int64))

    def forward(self, tokens, *, positions=None, cache=None, lengths=None, at=None):
        rows = torch.arange(len(tokens))[:, None]
        cache.tokens[rows, positions] = tokens
        hidden = torch.full((*tokens.shape, 1), 256.0)
        for row, here in enumerate(positions.tolist()):
            for column, position in enumerate(here):
                hidden[row, column, 0] = self.next.get(
                    tuple(cache.tokens[row, max(0, position - 39) : position + 1].tolist()), 256
                )
        return hidden if at is None else hidden[at]

    def logits(self, hidden):
        return torch.nn.functional.one_hot(hidden[..., 0].long(), 257).float()


@pytest.fixture
def run_qa(tmp_path, monkeypatch):
    """run_qa(questions, known, name=value ...) -> (summary, predictions) of a Parrot with known answers."""

    def run(questions, known, folder="nq", positions=600, **settings):
        place = tmp_path / folder
        place.mkdir(exist_ok=True)
        (place / "test.json").write_text(json.dumps(questions))
        monkeypatch.setattr(module, "open_checkpoint", lambda path: None)
        monkeypatch.setattr(
            module,
            "open_scorer",
            lambda load, length, size, retrieval, mesh: LanguageModel(
                Parrot(known), ByteTokenizer(), positions, size
            ),
        )
        tree = {
            "load": str(tmp_path),
            "valid_data": [str(place / "test.json")],
            "output": str(tmp_path / "out"),
            "overwrite": True,
            "tokens_to_generate": 30,
            **settings,
        }
        summary = qa(build(QaConfig, ("test", tree)))
        return summary, [
            json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()
        ]

    return run


def test_answers_are_generated_scored_and_written(run_qa):
    questions = [
        {
            "question": "who?",
            "answers": ["The Queen", "Anne"],
            "ctxs": [{"title": "T", "text": "found"}],
            "sub-paragraphs": "given",
        },
        {"question": "where?", "answer": "in Paris"},
        {"question": "when?", "answer": 1905, "id": "q3"},
    ]
    known = {
        "with a short span. who?\n\nAssistant: The answer is": " Anne.",
        "with a short span. where?\n\nAssistant: The answer is": " Paris\nand more",
    }
    summary, lines = run_qa(questions, known)
    assert [line["prediction"] for line in lines] == ["Anne.", "Paris and more", ""]
    assert [line["id"] for line in lines] == ["test.json:1", "test.json:2", "q3"]
    assert [line["passages"] for line in lines] == [1, 0, 0]
    assert summary["scores"]["exact_match"] == pytest.approx(1 / 3)
    assert summary["scores"]["f1"] == pytest.approx((1 + 2 * 1 / (3 + 2) + 0) / 3)
    assert summary["scores"]["f1_first_answer"] == pytest.approx((0 + 2 / 5 + 0) / 3)
    assert summary["scores"]["exact_match_stderr"] == pytest.approx(1 / 3)
    assert (summary["examples"], summary["counts"]["without_passages"]) == (3, 2)
    assert run_qa(questions, known, stop_on_eol=True)[1][1]["prediction"] == "Paris"


def test_prompts_have_the_requested_passages_truncated_to_fit(run_qa):
    questions = [
        {
            "question": "who?",
            "answers": ["Anne"],
            "ctxs": [{"title": "T", "text": "found " * 100}, {"title": "U", "text": "second"}],
            "sub_paragraph": "given",
        }
    ]
    end = "\n\nAssistant: The answer is"
    prompts_given = []
    original = module.LanguageModel.generate
    module.LanguageModel.generate = lambda self, prompts, sampling: (
        prompts_given.extend(bytes(p).decode() for p in prompts) or original(self, prompts, sampling)
    )
    try:
        run_qa(questions, {}, positions=1200, ft_neighbours=2)
        run_qa(questions, {}, positions=600)
        run_qa(questions, {}, use_retrieved_neighbours=False)
        run_qa(questions, {}, ft_neighbours=0)
        run_qa(questions, {}, positions=100, short_format=True, ft_neighbours=0)
        run_qa(questions, {}, task="BoolQ", ft_neighbours=0)
    finally:
        module.LanguageModel.generate = original
    long, cut, given, none, short, other = prompts_given
    assert "title: T, source: found found" in long
    assert (
        "\n\ntitle: U, source: second\n\nUser: Answer the following question with a short span. who?" in long
    )
    assert len(cut) == 570
    assert "title: T, source: found" in cut
    assert cut.endswith("with a short span. who?" + end)
    assert "title: , source: given\n\nUser:" in given
    assert "source" not in none
    assert short == "Question: who? Answer: The answer is"
    assert other.endswith("User: Answer the following question with True or False. who?\n\nAssistant:")


def test_a_question_that_does_not_fit_is_named_or_set_aside(run_qa):
    questions = [{"question": "w" * 300, "answer": "x"}, {"question": "who?", "answer": "Anne"}]
    with pytest.raises(
        UserError,
        match=(
            r"test.json, question test.json:1: has \d+ tokens with its instructions, and there is room for"
            r" 570: the 600 positions of the model less tokens_to_generate = 30; mend it"
        ),
    ):
        run_qa(questions, {})
    summary, lines = run_qa(questions, {}, on_error="skip")
    assert len(lines) == 1
    assert summary["counts"]["rejected"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "test.json: the file is empty; check the path"),
        ("{", "test.json, line 1: malformed JSON at column 2"),
        ('{"question": 1}', "test.json: is not a list of questions"),
        ("[]", "test.json: holds no question; check the path"),
        ('[{"question": "who?"}]', "test.json, record 1: has neither 'answers' nor 'answer'; mend it"),
        ('[{"question": "who?", "answers": []}]', "test.json, record 1: has no answers; mend it"),
        (
            '[{"question": " ", "answers": ["x"]}]',
            "test.json, record 1: has no 'question' that is a text; mend it",
        ),
        (
            '[{"question": "who?", "answers": [null]}]',
            "test.json, record 1: the answer None is not a text; mend it",
        ),
        (
            '[{"question": "who?", "answer": "x", "ctxs": [3]}]',
            "test.json, record 1: 'ctxs' is not a list of objects",
        ),
        ("[7]", "test.json, record 1: is not a JSON object; mend it"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path, monkeypatch, text, message):
    (tmp_path / "test.json").write_text(text)
    monkeypatch.setattr(module, "open_checkpoint", lambda path: None)
    monkeypatch.setattr(
        module,
        "open_scorer",
        lambda load, length, size, retrieval, mesh: LanguageModel(Parrot({}), ByteTokenizer(), 600, size),
    )
    with pytest.raises(UserError, match=message):
        qa(build(QaConfig, ("test", {"load": str(tmp_path), "valid_data": [str(tmp_path / "test.json")]})))

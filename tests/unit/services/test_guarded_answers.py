"""Guards on the way of a request: what is put back, what ends an answer, what is asked again, and who is asked for verdicts."""

import pytest

from guards.policy import load_policy
from rag.context import Passage
from services.errors import ContentRefused, GuardUnavailable
from services.protocol import ChatRequest, CompletionRequest

MOVED = Passage("Refunds take 5 days. Call 13812345678.", "a.md", 0, "", 1.0)


@pytest.fixture
def under(pipeline, bundle_folder, monkeypatch):
    """Put a policy in the place of `safe`."""

    def put(text):
        path = bundle_folder / "safe.yaml"
        path.write_text(text, encoding="utf-8")
        policy = load_policy("safe", path)
        pipeline.detectors.check(policy)
        monkeypatch.setattr(pipeline.routes._policies, "get", lambda _name: policy)

    return put


def chat(text="hi", model="chat", **fields):
    return ChatRequest(model=model, messages=[{"role": "user", "content": text}], **fields)


async def spoken(pipeline, request):
    events = [event async for event in pipeline.stream(request)]
    texts = {}
    for event in events:
        for choice in event["choices"]:
            texts[choice["index"]] = texts.get(choice["index"], "") + (choice["delta"].get("content") or "")
    return texts, events


async def test_the_model_sees_placeholders_and_the_caller_his_values(pipeline, engine, under):
    under("input: [{detector: pii, action: placeholder}]\noutput: [{detector: pii, action: mask}]")
    links = "see https://e.org/?q=[EMAIL_ADDRESS_1] [EMAIL_ADDRESS_9]"
    engine.pieces = ["Mail [EMAIL_", "ADDRESS_1] or [email_address_2], not x@y.org; ", links]
    request = chat("From a@example.com to b@example.com, for a@example.com", stream=True)
    texts, _ = await spoken(pipeline, request)

    sent = engine.asked[0][1]["messages"][-1]["content"]
    assert sent == "From [EMAIL_ADDRESS_1] to [EMAIL_ADDRESS_2], for [EMAIL_ADDRESS_1]"
    assert texts[0] == (
        "Mail a@example.com or b@example.com, not <EMAIL_ADDRESS>; see https://e.org/?q=[EMAIL_ADDRESS_1] [EMAIL_ADDRESS_9]"
    )
    assert (await pipeline.answer(chat(request.messages[0].content)))["choices"][0]["message"]["content"] == texts[0]


async def test_two_requests_share_no_values(pipeline, engine, under):
    under("input: [{detector: pii, action: placeholder}]")
    await pipeline.answer(chat("I am a@example.com"))
    engine.pieces = ["You are [EMAIL_ADDRESS_1]"]
    body = await pipeline.answer(chat("Who am I? [EMAIL_ADDRESS_1]"))

    assert body["choices"][0]["message"]["content"] == "You are [EMAIL_ADDRESS_1]"


async def test_a_block_in_mid_stream_ends_the_choice_and_frees_the_engine(pipeline, engine, under):
    under("output: [{detector: pii, action: block}]")
    engine.pieces = ["Write to ", "jane@exam", "ple.com ", "and then more", " and more"]
    taken = []
    made = engine.made

    def counted(path):
        for event in made(path):
            taken.append(event)
            yield event

    engine.made = counted
    texts, events = await spoken(pipeline, chat(stream=True))

    assert texts == {0: "Write to "}
    assert events[-1]["choices"][0]["finish_reason"] == "content_filter"
    assert events[-1]["ekiben"]["guards"][0]["action"] == "block"
    assert len(taken) == 3
    assert engine.closed == 1
    body = await pipeline.answer(chat())
    assert body["choices"][0]["finish_reason"] == "content_filter"
    assert body["choices"][0]["message"]["content"] == "Write to "


async def test_a_blocked_choice_leaves_the_others_alone(pipeline, engine, under):
    under("output: [{detector: pii, action: block}]")

    def event(index, text, last=None):
        return {"choices": [{"index": index, "finish_reason": last, "delta": {"content": text}}]}

    engine.events = [event(0, "a@b.org "), event(1, "Good "), event(0, "more", "stop"), event(1, "day", "stop")]
    texts, events = await spoken(pipeline, chat(stream=True, n=2))

    assert texts == {0: "", 1: "Good day"}
    reasons = [(c["index"], c["finish_reason"]) for e in events for c in e["choices"] if c["finish_reason"]]
    assert reasons == [(0, "content_filter"), (1, "stop")]


async def test_half_a_tool_call_is_not_made(pipeline, engine, under):
    under("output: [{detector: pii, action: block}]")
    call = {"index": 0, "id": "c", "function": {"name": "f", "arguments": '{"to": "jane@example.com" }'}}
    engine.events = [{"choices": [{"index": 0, "finish_reason": None, "delta": {"tool_calls": [call]}}]}]
    _, events = await spoken(pipeline, chat(stream=True))

    assert not any("tool_calls" in c["delta"] for e in events for c in e["choices"])
    assert events[-1]["choices"][0]["finish_reason"] == "content_filter"


async def test_the_system_prompt_does_not_leave(pipeline, engine, under, bundle_folder):
    under("output: [{detector: leak, action: block, canary: true}]")
    await pipeline.answer(chat())
    system = engine.asked[0][1]["messages"][0]["content"]
    mark = system.split("(")[1].split()[0]
    engine.pieces = ["Sure: ", mark[:11], mark[11:], " is it"]
    texts, _ = await spoken(pipeline, chat(stream=True))

    assert system.startswith("Be kind.")
    assert len(mark) == 24
    assert texts == {0: "Sure: "}


@pytest.mark.parametrize(("action", "asked", "reason"), [("regenerate", 2, "stop"), ("block", 1, "content_filter")])
@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_that_is_not_grounded(pipeline, engine, papers, under, action, asked, reason, stream):
    under(f"output: [{{detector: groundedness, action: {action}, threshold: 0.7}}]")
    papers.passages = [MOVED]
    answers = iter(["Refunds take 9 weeks.", "Refunds take 5 days."])
    complete = engine.complete

    async def answered(path, payload):
        engine.pieces = [next(answers)]
        return await complete(path, payload)

    engine.complete = answered
    request = chat("How long does a refund take?", "ask", stream=stream)
    if stream:
        texts, events = await spoken(pipeline, request)
        text, found = texts[0], [c["finish_reason"] for e in events for c in e["choices"] if c["finish_reason"]][-1]
    else:
        [choice] = (await pipeline.answer(request))["choices"]
        text, found = choice["message"]["content"], choice["finish_reason"]

    assert len(engine.asked) == asked
    assert found == reason
    assert "9 weeks" not in text
    assert reason == "content_filter" or text.startswith("Refunds take 5 days.")


async def test_what_is_not_grounded_is_told(pipeline, engine, papers, under):
    under("output: [{detector: pii, action: mask}, {detector: groundedness, action: annotate}]")
    papers.passages = [MOVED]
    engine.pieces = ["Refunds take 5 days, call 13812345678. ", "A refund costs 70 euros."]
    _, events = await spoken(pipeline, chat("How long?", "ask", stream=True))
    [told] = events[-1]["ekiben"]["groundedness"]

    assert [claim["reason"] for claim in told["unsupported"]] == ["number"]
    assert told["score"] < 1


@pytest.mark.parametrize(
    ("verdict", "raised"), [('{"attack": 0.9}', ContentRefused), ('{"attack": 0.1}', None), ("I think so", GuardUnavailable)]
)
async def test_a_model_is_asked_for_its_verdict(pipeline, engine, under, verdict, raised):
    under("input: [{detector: judge, question: injection, action: block}]")
    engine.pieces = [verdict]
    if raised is None:
        await pipeline.answer(chat())
    else:
        with pytest.raises(raised):
            await pipeline.answer(chat())

    path, payload = engine.asked[0]
    assert (path, payload["temperature"]) == ("/v1/chat/completions", 0)
    assert "hi" in payload["messages"][-1]["content"]


async def test_a_raw_prompt_is_judged_too(pipeline, engine, under):
    under("input: [{detector: judge, question: injection, action: block}]")
    engine.pieces = ['{"attack": 0.9}']
    with pytest.raises(ContentRefused):
        await pipeline.answer(CompletionRequest(model="chat", prompt="hi"))

    assert [path for path, _ in engine.asked] == ["/v1/chat/completions"]

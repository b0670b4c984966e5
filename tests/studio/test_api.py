"""The whole job over HTTP: data, estimate, run, watching, proof, export, comparison, combination, report, bin."""

import gzip
import json

import pytest

from tests.studio.server import chats, events
from tests.support.require import need


@pytest.fixture(scope="module")
def run(studio, data):
    """A run that has finished."""
    made = studio.train(data, studio.model)
    return studio.until(made["id"], "finished")


def test_models_are_listed_without_their_paths(studio):
    found = studio.get("models")
    row = found["models"][0]
    assert row["label"] == "tiny.gguf" and row["trainable"] and found["free"] > 0
    assert "/" not in json.dumps(found)
    facts = studio.get("models/facts", name=row["name"])
    assert facts["trainable"]["ok"] and facts["trainable"]["training"]["peak_bytes"] > 0


def test_every_token_says_whether_it_is_learned(studio, data):
    look = studio.get(f"data/{data}/look", model=studio.model)
    assert look["examples"] == 24 and 0 < look["learned"] < look["tokens"] and sum(look["bars"]) == 24
    assert not look["nothing"] and not look["problems"]
    first = studio.get(f"data/{data}/examples", model=studio.model, start=1, count=1)[0]
    assert first["line"] == 2 and json.loads(first["text"])["messages"]
    learned = "".join(text for text, on in first["tokens"] if on)
    assert learned == "four, me heartie.<|im_end|>"
    assert sum(on for _, on in first["tokens"]) == first["learned"]
    short = studio.get(f"data/{data}/examples", model=studio.model, start=1, count=1, context=20)[0]
    low, high = short["kept"]
    assert high - low == 20 and any(on for _, on in short["tokens"][low:high])


def test_lines_with_problems_are_named_and_nothing_starts(studio):
    lines = chats(1).splitlines(keepends=True)
    unanswered = b'{"messages": [{"role": "user", "content": "x"}]}\n'
    broken = studio.upload(lines[0] + b"not json\n" + lines[1] + unanswered)["id"]
    look = studio.get(f"data/{broken}/look", model=studio.model)
    assert [p["line"] for p in look["problems"]] == [2, 4] and look["examples"] == 2
    answer = studio.http.post("/api/runs", json={"model": studio.model, "data": broken})
    assert answer.status_code == 409 and "2 lines" in answer.json()["error"]
    change = {"version": 1, "changes": {"2": None, "4": lines[2].decode()}}
    assert studio.post(f"data/{broken}/edit", change)["versions"][-1]["change"] == "1 changed, 1 removed"
    look = studio.get(f"data/{broken}/look", model=studio.model)
    assert look["examples"] == 3 and not look["problems"]
    assert studio.get(f"data/{broken}/look", model=studio.model, version=1)["problem_count"] == 2
    for changes in ({"1": "[]"}, {"1": "{"}, {"99": None}):
        answer = studio.http.post(f"/api/data/{broken}/edit", json={"version": 1, "changes": changes})
        assert answer.status_code == 400, answer.text


def test_nothing_learned_says_why_and_cannot_start(studio):
    rows = b"".join(json.dumps({"messages": [{"role": "user", "content": str(n)}]}).encode() + b"\n" for n in range(3))
    empty = studio.upload(rows)["id"]
    look = studio.get(f"data/{empty}/look", model=studio.model)
    assert "no assistant message" in look["nothing"]
    answer = studio.http.post("/api/runs", json={"model": studio.model, "data": empty})
    assert answer.status_code == 409 and "no assistant message" in answer.json()["error"]


def test_columns_are_named_by_hand(studio):
    rows = b"".join(json.dumps({"frage": f"what {n}", "antwort": f"that {n}"}).encode() + b"\n" for n in range(3))
    made = studio.upload(rows)
    assert set(made["rows"][0]) == {"frage", "antwort"}
    look = studio.get(f"data/{made['id']}/look", model=studio.model)
    assert look["nothing"] and look["rows"]
    answer = studio.http.put(
        f"/api/data/{made['id']}/reading", json={"columns": {"prompt": "frage", "completion": "antwort"}}
    )
    assert answer.status_code == 200
    assert studio.get(f"data/{made['id']}/look", model=studio.model)["examples"] == 3


def test_uploads_go_on_where_they_broke_off(studio):
    content = gzip.compress(chats())
    upload = studio.post("uploads", {"name": "../../x.jsonl.gz", "size": len(content)})["id"]
    raw = {"content-type": "application/octet-stream"}

    def put(offset, piece):
        return studio.http.put(f"/api/uploads/{upload}", params={"offset": offset}, content=piece, headers=raw)

    assert put(0, content[:100]).json()["received"] == 100
    assert put(50, content[50:]).status_code == 409 and put(200, content[200:]).status_code == 409
    assert studio.http.post(f"/api/uploads/{upload}/finish", json={}).status_code == 409
    assert put(100, content[100:] + b"more").status_code == 400
    assert studio.get(f"uploads/{upload}")["received"] == 100
    assert put(100, content[100:]).json()["received"] == len(content)
    made = studio.post(f"uploads/{upload}/finish")
    assert made["name"] == "../../x.jsonl.gz"
    assert studio.get(f"data/{made['id']}/look", model=studio.model)["examples"] == 24
    assert studio.http.get(f"/api/uploads/{upload}").status_code == 404


@pytest.mark.parametrize(
    ("content", "kind"),
    [(b"GGUF\0\0\0junk", "data"), (b"\xff\xfe\xfd", "data"), (b"GGUF" + bytes(100), "adapter"), (b"{}", "adapter")],
)
def test_what_is_no_data_is_not_kept(studio, content, kind):
    before = studio.get("data"), studio.get("adapters")
    upload = studio.post("uploads", {"name": "x.txt", "size": len(content)})["id"]
    studio.http.put(
        f"/api/uploads/{upload}",
        params={"offset": 0},
        content=content,
        headers={"content-type": "application/octet-stream"},
    )
    answer = studio.http.post(f"/api/uploads/{upload}/finish", json={"kind": kind})
    assert answer.status_code == 400 and "/" not in answer.json()["error"], answer.text
    assert (studio.get("data"), studio.get("adapters")) == before
    assert not list((studio.home / "uploads").iterdir())


def test_presets_and_estimates_come_before_the_start(studio, data):
    presets = studio.get("presets", model=studio.model, data=data)
    assert set(presets) == {"quick", "good", "thorough"}
    seen = []
    for chosen in presets.values():
        plan = {"model": studio.model, "data": data, "settings": chosen["settings"], "lora": chosen["lora"]}
        found = studio.post("estimate", plan)
        assert found["bytes"] > 0 and found["seconds"] > 0 and found["free"] > 0
        seen.append(found["steps"])
    assert seen == sorted(seen) and seen[0] < seen[2]
    problem = studio.post("estimate", {"model": studio.model, "data": data, "memory": 1000})["problem"]
    assert "MiB are allowed" in problem


def test_a_run_is_watched_to_its_end(studio, run):
    assert run["step"] == 8 and run["adapter"] and run["total"] == 8
    series = studio.get(f"jobs/{run['id']}/series")["columns"]
    assert series["step"] == list(range(1, 9)) and None not in series["loss"]
    looks = studio.get(f"jobs/{run['id']}/looks")
    assert [look["step"] for look in looks] == [0, 4, 8] and len(looks[0]["answers"]) == 2
    tokens = looks[-1]["samples"][0]["tokens"]
    assert any(nats is not None for _, nats in tokens) and any(nats is None for _, nats in tokens)
    assert "/" not in json.dumps(run["spec"]) and any("Finished" in line for line in run["log"])
    assert not any(str(studio.home) in line for line in run["log"])


def test_points_are_replayed_after_the_last_one_that_arrived(studio, run):
    with studio.http.stream("GET", f"/api/jobs/{run['id']}/events", headers={"last-event-id": "5"}) as answer:
        event, number, rows = next(events(answer))
    assert event == "points" and number == "8" and [row[0] for row in rows] == [6, 7, 8]


def test_a_change_is_told_to_all_whoever_notices_it_first(studio, data):
    with studio.http.stream("GET", "/api/events") as answer:
        stream, seen = events(answer), []
        assert next(stream)[0] == "hello"
        job = studio.train(data, studio.model, 2)["id"]
        studio.until(job, "finished")  # which asks again and again, so that it is mostly the first to notice
        while "finished" not in seen:
            event, _, row = next(stream)
            if event == "job" and row["id"] == job:
                seen.append(row["state"])
    assert seen[0] == "queued"


def test_settings_never_change_but_a_run_can_be_made_again(studio, run, data):
    again = studio.train(data, studio.model, 2, parent=run["id"], name="shorter")
    done = studio.until(again["id"], "finished")
    assert done["parent"] == run["id"] and done["name"] == "shorter" and done["total"] == 2
    assert studio.get(f"jobs/{run['id']}")["total"] == 8
    answer = studio.http.post("/api/runs", json={"model": studio.model, "data": data, "settings": {"lr": 50}})
    assert answer.status_code == 400 and "--learning-rate" in answer.json()["error"]


def test_the_badge_comes_with_the_proof_and_goes_with_the_bytes(studio, run):
    need("xllamacpp")
    assert studio.get(f"adapters/{run['id']}")["proof"] is None
    job = studio.post(f"adapters/{run['id']}/verify")
    assert studio.until(job["id"], "finished")["result"]["ok"]
    found = studio.get(f"adapters/{run['id']}")
    assert found["proof"]["ok"] and found["proof"]["facts"]["with_adapter"]["ok"] and found["data"]["name"]
    file = studio.home / "jobs" / run["id"] / "adapter.gguf"
    content = file.read_bytes()
    file.write_bytes(content[:-4] + b"\0\0\0\1")
    assert studio.get(f"adapters/{run['id']}")["proof"] is None
    file.write_bytes(content)
    assert studio.get(f"adapters/{run['id']}")["proof"]["ok"]


def test_exports_go_to_places_that_have_names(studio, run):
    assert "exports" in [place["name"] for place in studio.get("places")["places"]]
    for form, files in (
        ("gguf", ["mine.gguf"]),
        (
            "peft",
            [
                f"mine-peft/{name}"
                for name in ("adapter_config.json", "adapter_model.safetensors", "chat_template.jinja")
            ],
        ),
    ):
        job = studio.post(f"adapters/{run['id']}/export", {"form": form, "name": "Mine"})
        studio.until(job["id"], "finished")
        assert [file["name"] for file in studio.get(f"jobs/{job['id']}/files")] == files
        content = studio.http.get(f"/api/jobs/{job['id']}/files/{files[0]}").content
        assert content == (studio.home / "exports" / files[0]).read_bytes()
    for how, status in (({"form": "gguf", "name": "Mine"}, 400), ({"form": "gguf", "place": "../.."}, 404)):
        assert studio.http.post(f"/api/adapters/{run['id']}/export", json=how).status_code == status
    for name in ("%2e%2e/%2e%2e/token", "mine-peft%2f..%2f..%2ftoken", "%2fetc%2fpasswd", "..%2fhome"):
        assert studio.http.get(f"/api/jobs/{job['id']}/files/{name}").status_code == 404


def test_answers_side_by_side_say_how_far_each_is_from_the_base(studio, run):
    ask = {
        "model": studio.model,
        "columns": [None, run["id"], None],
        "max_tokens": 8,
        "seed": 3,
        "messages": [{"role": "user", "content": "Say hello."}],
    }
    texts, ends = ["", "", ""], {}
    with studio.http.stream("POST", "/api/compare", json=ask) as answer:
        for event, _, item in events(answer):
            if event == "piece":
                texts[item["column"]] += item["text"]
            elif event == "end":
                ends[item["column"]] = item
    assert texts[0] == texts[2] != texts[1] and all(texts)
    assert ends[0]["kl"] == ends[2]["kl"] == 0 and ends[1]["kl"] > 0
    assert ends[0]["hash"] is None and ends[1]["hash"] == studio.get(f"adapters/{run['id']}")["facts"]["sha256"]
    for chosen in (1, 1, None):
        tally = studio.post(
            "votes", {"prompt": "x", "model": studio.model, "columns": [None, run["id"]], "chosen": chosen}
        )
    assert tally["tally"][run["id"]] == {"shown": 3, "won": 2, "drew": 1} and tally["tally"]["base"]["won"] == 0


def test_adapters_are_combined_renamed_deleted_and_put_back(studio, run):
    parts = [{"id": run["id"]}, {"id": run["id"], "weight": -1}]
    done = studio.until(studio.post("adapters/combine", {"parts": parts, "name": "nothing left"})["id"], "finished")
    made = done["result"]["adapter"]
    found = studio.get(f"adapters/{made}")
    assert found["facts"]["rank"] == 32 and [part["weight"] for part in found["made_of"]] == [1, -1]
    answer = studio.http.patch(f"/api/adapters/{made}", json={"name": "zero", "note": "a + (-1) a"})
    assert answer.json()["note"] == "a + (-1) a"
    assert studio.http.delete(f"/api/adapters/{made}").status_code == 204
    assert studio.http.get(f"/api/adapters/{made}").status_code == 404
    binned = studio.get("bin")
    assert [one["name"] for one in binned] == ["zero"]
    studio.post(f"bin/{binned[0]['id']}/restore")
    assert studio.get(f"adapters/{made}")["name"] == "zero"
    studio.http.delete(f"/api/adapters/{made}")
    assert studio.http.delete("/api/bin").status_code == 204 and studio.get("bin") == []


def test_a_system_message_becomes_an_adapter_in_closed_form(studio, data):
    job = studio.post(
        "adapt",
        {
            "model": studio.model,
            "data": data,
            "system": "Speak as a sailor.",
            "rank": 4,
            "context": 128,
            "name": "sailor",
        },
    )
    studio.until(job["id"], "finished")
    found = studio.get(f"adapters/{job['id']}")
    assert found["name"] == "sailor" and found["facts"]["rank"] == 8 and found["kind"] == "adapt"


def test_reports_are_pages_that_may_do_nothing(studio, run, data):
    job = studio.post(
        "evaluate",
        {
            "report": "compare",
            "model": studio.model,
            "adapters": [run["id"]],
            "data": data,
            "limit": 2,
            "max_tokens": 4,
        },
    )
    studio.until(job["id"], "finished")
    page = studio.http.get(f"/api/jobs/{job['id']}/report")
    policy = page.headers["content-security-policy"]
    assert page.status_code == 200 and "sandbox" in policy and "script-src" not in policy
    assert str(studio.home) not in page.text
    job = studio.post(
        "evaluate",
        {
            "report": "perplexity",
            "model": studio.model,
            "data": studio.upload(b"one two three four five six seven. " * 200, "t.txt")["id"],
        },
    )
    assert studio.until(job["id"], "finished")["result"]["facts"]["perplexity"] > 1

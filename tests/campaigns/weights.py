"""Damaged checkpoints: safetensors whose headers lie, and nonsense in the JSON of model, tokenizer and processor."""

import json
import pickle
import shutil
import struct
from pathlib import Path
from typing import Any

from _child import Place, command, run
from _frame import SECONDS, Campaign, Draw, Outcome, changed, judge, surroundings
from _nonsense import VALUES, flip, nonsense
from _verbs import make_checkpoints, make_index, make_photos, rows_of_index
from kills import differences

from images import Touching

WEIGHTS = "model.safetensors"
DTYPES = ("F64", "F32", "F16", "BF16", "I64", "U8", "BOOL", "X", "F8_E4M3")


def lie(data: bytes, draw: Draw, canary: Path) -> tuple[bytes, str]:
    """Return weights whose header does not tell the truth, and what is wrong with it."""
    size = struct.unpack("<Q", data[:8])[0]
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    name = draw.choice([each for each in header if each != "__metadata__"])
    entry, kinds = header[name], ["length", "dtype", "shape", "offsets", "gone", "extra", "metadata", "other"]
    kind = draw.choice(kinds)
    if kind == "length":
        length = draw.choice([0, 1, size - 1, size + 1, 2**31, 2**63, 2**64 - 1])
        return struct.pack("<Q", length) + data[8:], f"header of {length} bytes"
    if kind == "other":
        return other_bytes(data, draw, canary)
    if kind == "dtype":
        entry["dtype"] = draw.choice([*DTYPES, 5, None])
    elif kind == "shape":
        entry["shape"] = draw.choice([[], [2**62, 4], [-1], [0], [1, *entry["shape"]], "x", None])
    elif kind == "offsets":
        entry["data_offsets"] = draw.choice([[0, 2**60], [5, 1], [-4, 4], [0, 0], [1], "x", [0.5, 4]])
    elif kind == "gone":
        for gone in draw.sample(list(header), draw.choice([1, 5, len(header)])):
            header.pop(gone)
    elif kind == "extra":
        header["\ud800" if draw.random() < 0.3 else "extra.weight"] = dict(entry)
    elif kind == "metadata":
        header["__metadata__"] = draw.choice(VALUES)
    text = json.dumps(header).encode("utf-8", "surrogatepass")
    return struct.pack("<Q", len(text)) + text + body, f"{kind} of {name}: {str(header.get(name))[:80]}"


def other_bytes(data: bytes, draw: Draw, canary: Path) -> tuple[bytes, str]:
    size = struct.unpack("<Q", data[:8])[0]
    deep = b'{"a":' * 100_000
    choices = {
        "cut": data[: draw.randrange(len(data))],
        "flipped header": flip(data, draw, within=8 + size),
        "not UTF-8": struct.pack("<Q", 20) + b'{"\xff\xfe": {}}     ' + data[8 + size :],
        "empty": b"",
        "pickle": pickle.dumps(Touching(str(canary))),
        "deep": struct.pack("<Q", len(deep)) + deep,
        "longer": data + bytes(100),
        "duplicate keys": struct.pack("<Q", 14) + b'{"a":1,"a":2} ' + data[8 + size :],
        "not a header": struct.pack("<Q", 4) + b"null" + data[8 + size :],
    }
    name = draw.choice(sorted(choices))
    return choices[name], name


def damage(model: Path, draw: Draw, canary: Path) -> tuple[str, bool]:
    """Damage a checkpoint; return what was done, and whether a result that loads has to be the same as before."""
    if draw.random() < 0.5:
        path = model / WEIGHTS
        data, told = lie(path.read_bytes(), draw, canary)
        path.write_bytes(data)
        return f"{WEIGHTS}: {told}", True
    kind = draw.choice(["nonsense", "nonsense", "nonsense", "code", "pickle"])
    if kind == "nonsense":
        path = draw.choice(sorted(model.glob("*.json")))
        data, told = nonsense(path.read_bytes(), draw)
        path.write_bytes(data)
        return f"{path.name}: {told}", False
    if kind == "pickle":
        (model / WEIGHTS).unlink()
        (model / "pytorch_model.bin").write_bytes(pickle.dumps(Touching(str(canary))))
        return "a pickle in place of the weights", True
    return put_code(model, draw, canary), False


def put_code(model: Path, draw: Draw, canary: Path) -> str:
    """Make a checkpoint ask for code that lies in its folder."""
    (model / "evil.py").write_text(f"open({str(canary)!r}, 'w').close()\nclass Evil: pass\n")
    path = draw.choice([each for each in sorted(model.glob("*config*.json")) if each.stat().st_size > 2])
    content: dict[str, Any] = json.loads(path.read_text())
    keys = ("AutoConfig", "AutoModel", "AutoProcessor", "AutoTokenizer", "AutoImageProcessor")
    content["auto_map"] = dict.fromkeys(keys, "evil.Evil")
    if draw.random() < 0.4:
        content["model_type"] = "evil"
    if draw.random() < 0.3:
        content["attn_implementation"] = content["_attn_implementation"] = "evil/kernel"
    path.write_text(json.dumps(content))
    return f"{path.name} asks for code: model type {content.get('model_type')}"


def attempt(shared: Path, place: Place, draw: Draw) -> Outcome:
    """Damage a checkpoint, then load it by one of the verbs."""
    model = place.given / "model"
    shutil.copytree(shared / "model", model)
    told, is_equal = damage(model, draw, place.canary)
    before, verb = surroundings(place), draw.choice(["search index", "search index", "card", "publish"])
    if verb == "search index":
        words: list[Any] = ["search", "index", shared / "photos", "--model", model, "--index", place.out / "index"]
    else:
        words = [verb, model] if verb == "card" else [verb, model, "me/mine", "--license", "mit", "--dry-run"]
    ended = run(command(*words), place, SECONDS, programs=["python"])

    def wrong() -> str:
        if verb == "search index" and is_equal:
            pair = rows_of_index(place.out / "index"), rows_of_index(shared / "index")
            return next(differences(*json.loads(json.dumps(pair))), "")
        own = {"given/model/README.md", "given/model/card_facts.json"} if verb == "card" else set()
        after = {name: value for name, value in surroundings(place).items() if name not in own}
        return changed({name: value for name, value in before.items() if name not in own}, after)

    return judge(ended, f"{verb}: {told}", wrong=wrong)


def prepare(shared: Path) -> None:
    make_photos(shared)
    make_checkpoints(shared)
    make_index(shared)


CAMPAIGN = Campaign(
    name="weights",
    about="a checkpoint whose safetensors header lies (lengths, types, shapes, offsets), is a pickle, asks for code, "
    "or has nonsense in a JSON file of model, tokenizer or processor; then search index, card, publish (dry)",
    tries=100,
    attempt=attempt,
    prepare=prepare,
)

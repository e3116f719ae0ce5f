"""Attacks on the page, counted: paths, addresses, markup, many visitors at once, and memory over thousands of queries.

  python tests/campaigns/page.py
  python tests/campaigns/page.py --paths 200 --queries 500

A page of a tiny model over drawings is served by another process, on loopback. The numbers of a run end in a table.
Anything that was lost, hung, leaked, fetched or live makes the exit code 1.
"""

import argparse
import io
import itertools
import json
import os
import random
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote

import httpx
from PIL import Image, ImageDraw

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
SECRET = "contents that no visitor may see"
PERSPECTIVES = ["short", "main_object", "style"]
SLIDERS = [1.0, 0.0, 0.0, 0.0]
MARKUPS = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "<svg/onload=alert(1)>",
    "<iframe srcdoc='<script>alert(1)</script>'>",
    "<a href=javascript:alert(1)>x</a>",
    "<form action=//evil.example><input name=q></form>",
    "<style>@import url(//evil.example/x.css)</style>",
    "<link rel=stylesheet href=//evil.example>",
    "<base href=//evil.example>",
    "<meta http-equiv=refresh content='0;url=//evil.example'>",
    "<object data=x>",
    "<embed src=x>",
    "<math><mtext></form><form><mglyph><style></math><img src onerror=alert(1)>",
    "<details open ontoggle=alert(1)>",
    "<video><source onerror=alert(1)>",
    "<body onload=alert(1)>",
    "<input autofocus onfocus=alert(1)>",
    "<textarea autofocus onfocus=alert(1)>",
    "</textarea><script>alert(1)</script>",
    "</style><script>alert(1)</script>",
    "</title><script>alert(1)</script>",
    '"><script>alert(1)</script>',
    "'><script>alert(1)</script>",
    '" onmouseover=alert(1) x="',
    "' onmouseover=alert(1) x='",
    "` onmouseover=alert(1) `",
    "<!--<img src=x onerror=alert(1)>-->",
    "<![CDATA[<script>alert(1)</script>]]>",
    "&lt;script&gt;alert(1)&lt;/script&gt;",
    "&#60;script&#62;alert(1)&#60;/script&#62;",
    "\\u003cscript\\u003ealert(1)",
    "${alert(1)}",
    "{{alert(1)}}",
    "{#if true}<script>{/if}",
    "${(() => { throw 1 })()}",
    "javascript:alert(1)",
    "data:text/html,<script>alert(1)</script>",
    "<scr<script>ipt>alert(1)</script>",
    "＜script＞alert(1)＜/script＞",
    "<x:script xmlns:x='http://www.w3.org/1999/xhtml'>alert(1)</x:script>",
]


OWN_TAGS = ["b", "button", "details", "div", "em", "figcaption", "figure", "h3", "h4", "i", "img", "label", "li", "ol"]
OWN_TAGS += ["p", "section", "small", "span", "summary", "table", "tbody", "td", "textarea", "th", "thead", "tr", "ul"]


class Fault(NamedTuple):
    """Something that must not be: `lost`, `hung`, `traceback`, `foreign` or `memory`, and what it was."""

    kind: str
    told: str


class Outcome(NamedTuple):
    """Numbers of one campaign."""

    name: str
    about: str
    tries: int
    refused: int
    faults: Sequence[Fault]
    told: str

    def record(self, commit: str) -> dict[str, Any]:
        """Return the numbers as the records of other campaigns have them."""
        kinds = Counter(fault.kind for fault in self.faults)
        counts = {kind: kinds[kind] for kind in ("lost", "hung", "traceback", "foreign", "memory")}
        finished = self.tries - self.refused - sum(counts.values())
        faults = [f"{fault.kind}: {fault.told}" for fault in self.faults]
        about = f"{self.about} ({self.told})"
        numbers = {"tries": self.tries, "finished": finished, "refused": self.refused, **counts}
        return {"about": about, **numbers, "commit": commit, "faults": faults}


class Server(NamedTuple):
    """A served page: its address, process, folder of images, and the file of addresses that it connected to."""

    address: str
    process: "subprocess.Popen[bytes]"
    folder: Path
    connected: Path

    @property
    def megabytes(self) -> int:
        """Memory that the process holds."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.findall(r"VmRSS:\s+(\d+)", status)[0]) // 1024


def drawn(number: int) -> Image.Image:
    image = Image.new("RGB", (32, 32), "white")
    colour = ("red", "green", "blue", "orange")[number % 4]
    ImageDraw.Draw(image).ellipse((4, 4, 20 + number % 8, 20 + number % 8), fill=colour)
    return image


def serve(folder: Path, port: int) -> None:
    """Serve a page of a tiny model over the drawings of a folder, until the process is ended."""
    import torch
    from transformers import CLIPImageProcessor

    from holistic_clip_hf import HolisticCLIPConfig, HolisticCLIPModel, HolisticCLIPProcessor
    from holistic_clip_hf.demo.editing import CaptionFile
    from holistic_clip_hf.demo.page import serve as serve_page
    from holistic_clip_hf.demo.showcase import Showcase
    from holistic_clip_hf.search import FolderImages, SearchIndex, index_images
    from holistic_clip_hf.trainer.tiny import train_tokenizer

    torch.set_num_threads(1)
    torch.manual_seed(0)
    note_connections(folder / "connected.txt")
    tokenizer = train_tokenizer(["a red circle on white, drawn flat"], vocab_size=560, max_length=24)
    ids = {"vocab_size": len(tokenizer), "max_position_embeddings": 24, "eos_token_id": tokenizer.eos_token_id}
    ids |= {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": tokenizer.pad_token_id}
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    patches = {"image_size": 32, "patch_size": 8, "num_branches": 3, "num_branch_layers": 1}
    config = HolisticCLIPConfig(
        text_config={**tower, **ids},
        vision_config={**tower, **patches},
        projection_dim=16,
        perspectives=PERSPECTIVES,
    )
    model = HolisticCLIPModel(config).eval()
    size = {"height": 32, "width": 32}
    processor = HolisticCLIPProcessor(CLIPImageProcessor(size=size, crop_size=size), tokenizer)
    images = folder / "drawings"
    index_images(folder / "index", FolderImages(images), model, processor)
    captions = {path.name: [("short", MARKUPS[number % 40])] for number, path in enumerate(sorted(images.iterdir()))}
    index = SearchIndex(folder / "index", model, processor)
    edited = CaptionFile(folder / "captions.jsonl")
    showcase = Showcase(index, model, processor, captions=captions, name="tiny", edited=edited)
    serve_page(showcase, port=port)


def note_connections(path: Path) -> None:
    """Write every host that this process connects to into a file."""

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "socket.connect" and isinstance(arguments[1], tuple):
            with open(path, "a", encoding="utf-8") as file:
                file.write(f"{arguments[1][0]}\n")

    sys.addaudithook(note)


@contextmanager
def served(folder: Path) -> Iterator[Server]:
    """The page in a process of its own, until the block ends."""
    (folder / "drawings").mkdir()
    for number, markup in enumerate(MARKUPS):
        drawn(number).save(folder / "drawings" / f"{markup.replace('/', '∕')[:80]}{number}.png")
    (folder / "secret.txt").write_text(SECRET)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, __file__, "--serve", str(folder), str(port)]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    with open(folder / "log.txt", "wb") as log, subprocess.Popen(command, stderr=log, env=environment) as process:
        try:
            server = Server(f"http://127.0.0.1:{port}", process, folder, folder / "connected.txt")
            wait_for(server)
            yield server
        finally:
            process.terminate()
            process.wait(timeout=30)


def wait_for(server: Server) -> None:
    for _ in range(240):
        if server.process.poll() is not None:
            raise RuntimeError(f"The page has not started: {(server.folder / 'log.txt').read_text()[-2_000:]}")
        try:
            httpx.get(server.address)
            return
        except httpx.TransportError:
            time.sleep(0.5)
    raise TimeoutError("The page has not started within two minutes.")


def answered(visitor: httpx.Client, name: str, data: Sequence[Any]) -> tuple[str, list[Any] | None]:
    """Return how a call ended, and what it gave."""
    started = visitor.post(f"/gradio_api/call/{name}", json={"data": data})
    if started.status_code != 200:
        return f"status {started.status_code}", None
    text = visitor.get(f"/gradio_api/call/{name}/{started.json()['event_id']}").text
    event = re.findall(r"^event: (?!heartbeat)(\w+)", text, re.M)
    found = re.findall(r"^event: complete\ndata: (.*)$", text, re.M)
    return (event or ["none"])[-1], json.loads(found[0]) if found else None


class Live(HTMLParser):
    """What could run or be fetched in a piece of HTML; our own tags and `data:` pictures cannot."""

    KNOWN = frozenset(OWN_TAGS)

    def __init__(self, markup: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(markup)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        names = {name: value or "" for name, value in attrs}
        self.found += [] if tag in self.KNOWN else [f"<{tag}>"]
        self.found += [f"<{tag} {name}>" for name in names if name.startswith("on") or name in ("href", "action")]
        self.found += [names["src"]] if not names.get("src", "data:image/webp").startswith("data:image/webp") else []


def attack_paths(server: Server, visitor: httpx.Client, most: int) -> Outcome:
    """Ask for files of the machine by every route, spelled in every way."""
    folder = server.folder
    files = ["/etc/passwd", "/proc/self/environ", f"{folder}/secret.txt", f"{folder}/index/index.json", "setup.cfg"]
    files += [f"{folder}/captions.jsonl", f"{folder}/drawings", "C:\\Windows\\win.ini", "~/.ssh/id_rsa", ".env"]
    ups = ["", "../" * 8, "..%2f" * 8, "%2e%2e/" * 8, "..\\" * 8, "..%5c" * 8, "....//" * 8, "/./" * 4, "%00/", "//"]
    routes = ["/gradio_api/file=", "/gradio_api/file/", "/file=", "/file/", "/gradio_api/proxy=", "/static/"]
    routes += ["/assets/", "/", "/gradio_api/", "/gradio_api/upload/", "/custom_component/", "/svelte/", "/theme.css/"]
    routes += ["/gradio_api/stream/", "/config/", "/gradio_api/call/", "/gradio_api/heartbeat/../file="]
    routes += ["/gradio_api/../file=", "/login/"]
    asked = list(itertools.product(routes, ups, files))
    random.Random(0).shuffle(asked)
    counts: Counter[int] = Counter()
    faults = []
    for route, up, file in asked[:most]:
        path = f"{route}{up}{file.lstrip('/') if up else file}"
        try:
            with visitor.stream("GET", path, timeout=10) as answer:
                body = next(answer.iter_bytes(200_000), b"")
        except httpx.HTTPError as error:
            faults.append(Fault("hung", f"{type(error).__name__}: {path}"))
            continue
        counts[answer.status_code] += 1
        text = body.decode("utf-8", "replace")
        if SECRET in text or "root:" in text or '"segments"' in text:
            faults.append(Fault("lost", f"{answer.status_code}: {path}"))
        elif answer.status_code >= 500:
            faults.append(Fault("traceback", f"{answer.status_code}: {path}"))
    told = ", ".join(f"{count} of status {status}" for status, count in sorted(counts.items()))
    refused = sum(count for status, count in counts.items() if 400 <= status < 500)
    about = "files of the machine, by every route and spelling"
    return Outcome("paths", about, counts.total(), refused, faults, told)


def attack_addresses(server: Server, visitor: httpx.Client, most: int) -> Outcome:
    """Name addresses for the server to fetch, as uploads, as files and through the proxy."""
    hosts = ["127.0.0.1:1", "169.254.169.254", "localhost:22", "evil.example", "[::1]:80", "0x7f000001", "2130706433"]
    hosts += ["127.1", "evil.example@127.0.0.1", "127.0.0.1.nip.example"]
    schemes = ["http", "https", "HTTP", "ftp", "file", "gopher", "s3", "hf", "data", "jar"]
    asked = [f"{scheme}://{host}/x.png" for scheme, host in itertools.product(schemes, hosts)]
    kind = {"_type": "gradio.FileData"}
    ways: list[Callable[[str], str]] = [
        lambda place: answered(visitor, "look", [{"path": place, "meta": kind}, *SLIDERS])[0],
        lambda place: answered(visitor, "look", [{"path": None, "url": place, "meta": kind}, *SLIDERS])[0],
        lambda place: f"status {visitor.get('/gradio_api/file=' + quote(place, safe=':/@[]')).status_code}",
    ]
    tries = list(itertools.product(asked, ways))[:most]
    counts: Counter[str] = Counter()
    faults = []
    for place, way in tries:
        ended = way(place)
        counts[ended] += 1
        if ended not in ("error", "status 400", "status 403", "status 404"):
            faults.append(Fault("traceback", f"{ended}: {place}"))
    connected = set(server.connected.read_text().split()) if server.connected.exists() else set()
    faults += [Fault("foreign", f"connected to {host}") for host in connected - {"127.0.0.1", "::1"}]
    told = "nothing was connected to"
    return Outcome("addresses", "addresses to fetch, as files and uploads", len(tries), len(tries), faults, told)


def attack_markup(server: Server, visitor: httpx.Client, most: int) -> Outcome:
    """Put markup into queries, perspectives, ids, and, by the drawings, into names and captions."""
    faults = []
    ids = [path.name for path in (server.folder / "drawings").iterdir()]
    tries = 0
    for markup in MARKUPS[:most]:
        image_id = next(each for each in ids if each.startswith(markup.replace("/", "∕")[:80]))
        for name, data in (
            ("search", [markup, *SLIDERS]),
            ("search", [f'"{markup.replace(chr(34), "")}"', *SLIDERS]),
            ("search", [f"{markup}: x", *SLIDERS]),
            ("inspect", [image_id, markup]),
            ("inspect", [markup, "x"]),
        ):
            tries += 1
            ended, found = answered(visitor, name, data)
            live = Live("".join(map(str, found))).found if found else []
            faults += [Fault("traceback", f"{ended}: {markup}")] if ended != "complete" else []
            faults += [Fault("foreign", f"live {each}: {markup}") for each in live]
    told = "shown as text"
    return Outcome("markups", "markup in queries, perspectives, ids, names and captions", tries, 0, faults, told)


def attack_at_once(server: Server, visitor: httpx.Client, most: int) -> Outcome:
    """Ask and upload all at once, and hold each answer against the one that comes alone."""
    texts = [f"a {colour} circle {number}" for number, colour in enumerate(["red", "green", "blue"] * most)][
        : most // 2
    ]
    cards = re.compile(r'data-image-id="([^"]*)"')

    def search(text: str) -> tuple[str, list[str]]:
        ended, found = answered(visitor, "search", [text, *SLIDERS])
        return ended, cards.findall(found[0]) if found else []

    def upload(number: int) -> tuple[str, list[str]]:
        file = io.BytesIO()
        drawn(number).save(file, "PNG")
        stored = visitor.post("/gradio_api/upload", files={"files": (f"{number}.png", file.getvalue())})
        if stored.status_code != 200:
            return f"status {stored.status_code}", []
        given = {"path": stored.json()[0], "meta": {"_type": "gradio.FileData"}}
        ended, found = answered(visitor, "look", [given, *SLIDERS])
        return ended, cards.findall(found[0]) if found else []

    jobs = [(search, text) for text in texts] + [(upload, number) for number in range(most - len(texts))]
    random.Random(0).shuffle(jobs)
    begin = time.monotonic()
    with ThreadPoolExecutor(most) as pool:
        answers = list(pool.map(lambda job: job[0](job[1]), jobs))  # type: ignore[operator]
    seconds = time.monotonic() - begin
    # A page that is full says so, and the visitor comes back.
    refused = sum(ended == "status 503" for ended, _ in answers)
    faults = [Fault("traceback", ended) for ended, _ in answers if ended not in FINE]
    for (ended, found), (ask, given) in list(zip(answers, jobs, strict=True))[:40]:
        if ended == "complete" and found != ask(given)[1]:  # type: ignore[operator]
            faults.append(Fault("lost", f"another answer alone: {given}"))
    told = f"{seconds:.0f} s for all"
    return Outcome("at_once", "queries and uploads, all at once", most, refused, faults, told)


FINE = ("complete", "status 503")


def attack_memory(server: Server, visitor: httpx.Client, most: int) -> Outcome:
    """Ask thousands of times, each time as another visitor, and see what memory the page holds."""
    faults: list[Fault] = []
    sizes: list[int] = []
    refused = 0
    begin = time.monotonic()
    with ThreadPoolExecutor(4) as pool:
        for start in range(0, most, max(1, most // 10)):
            some = range(start, min(most, start + max(1, most // 10)))
            ended = list(pool.map(lambda number: answered(visitor, "search", [f"circle {number}", *SLIDERS])[0], some))
            faults += [Fault("traceback", each) for each in ended if each not in FINE]
            refused += ended.count("status 503")
            sizes.append(server.megabytes)
    grown = sizes[-1] - sizes[0]
    if grown > MOST_GROWN:
        faults.append(Fault("memory", f"grown by {grown} MB"))
    told = f"{sizes[0]} MB after a tenth, {sizes[-1]} MB at the end, {time.monotonic() - begin:.0f} s"
    return Outcome("queries", "queries of as many visitors, at flat memory", most, refused, faults, told)


MOST_GROWN = 100  # megabytes, from a tenth of the queries to their end


def main() -> int:
    """Run all campaigns and print their table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--paths", type=int, default=1_900)
    parser.add_argument("--addresses", type=int, default=300)
    parser.add_argument("--markups", type=int, default=len(MARKUPS))
    parser.add_argument("--at-once", type=int, default=200)
    parser.add_argument("--queries", type=int, default=10_000)
    parser.add_argument("--records", type=Path, help="folder to write a record of each campaign into")
    parser.add_argument("--serve", nargs=2, metavar=("FOLDER", "PORT"), help="serve the page that is attacked")
    options = parser.parse_args()
    if options.serve:
        serve(Path(options.serve[0]), int(options.serve[1]))
        return 0
    attacks = {
        attack_paths: options.paths,
        attack_addresses: options.addresses,
        attack_markup: options.markups,
        attack_at_once: options.at_once,
        attack_memory: options.queries,
    }
    outcomes = []
    with tempfile.TemporaryDirectory() as folder, served(Path(folder)) as server:
        # A connection for each request, as of different visitors. One that is kept might be closed by the
        # server, which waits five seconds, just when it is used again.
        limits = httpx.Limits(max_connections=options.at_once + 20, max_keepalive_connections=0)
        with httpx.Client(base_url=server.address, timeout=300, limits=limits) as visitor:
            for attack, most in attacks.items():
                outcomes.append(attack(server, visitor, most))
                sys.stderr.write(f"{outcomes[-1].name}: {outcomes[-1].told}\n")
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, cwd=ROOT).stdout
    lines = ["| campaign | tries | refused | faults | |", "|---|---:|---:|---:|---|"]
    for outcome in outcomes:
        lines.append(
            f"| {outcome.name} | {outcome.tries:,} | {outcome.refused:,} | {len(outcome.faults)} | {outcome.told} |"
        )
        if options.records:
            record = json.dumps(outcome.record(commit.strip()), indent=1)
            (options.records / f"page_{outcome.name}.json").write_text(f"{record}\n", encoding="utf-8")
    faults = [f"{outcome.name}, {fault.kind}: {fault.told}" for outcome in outcomes for fault in outcome.faults]
    sys.stdout.write("\n".join([*lines, *faults[:40], ""]))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())

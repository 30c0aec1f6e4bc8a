"""A stand-in for a language model, for work without one: rules from diagnosis words to features of the waveform, served
in OpenAI's chat form on this machine.

It is no language model, knows only what stands below, and is named as what it is in every answer. Made-up features can
be asked for, as language models bring them: so it can be seen what the ECGs drop.
"""

from __future__ import annotations

import hashlib
import json
import re
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from cardialign.data_shards.files import parse_json

MODEL = "cardialign-rules"

RULES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"atrial fibrillation", ("P waves absent", "Irregular RR intervals")),
    (r"atrial flutter", ("Sawtooth waves in inferior leads",)),
    (r"sinus tachycardia|rapid sinus", ("Rapid ventricular rate",)),
    (r"sinus bradycardia", ("Slow ventricular rate",)),
    (r"ventricular premature|premature ventricular|ventricular extrasystol|\bpvc", ("Premature wide QRS complexes",)),
    (r"atrial premature|premature atrial|supraventricular extrasys|\bpac\b", ("Premature narrow QRS complexes",)),
    (r"(1st|first) degree a-?v block|prolonged pr", ("PR interval above 200 ms",)),
    (r"wenckebach|mobitz i\b|type i\b", ("Progressive PR prolongation with dropped beats",)),
    (r"complete (a-?v|heart) block|third degree a-?v", ("A-V dissociation",)),
    (r"pacemaker|paced|pacing", ("Spikes before QRS complexes", "Wide QRS complexes")),
    (r"left bundle branch block|\blbbb\b", ("Broad notched R in lateral leads", "Wide QRS complexes")),
    (r"right bundle branch block|\brbbb\b", ("RSR' pattern in V1", "Wide terminal S in lateral leads")),
    (r"anterior (fascicular|hemi) ?block|anterior hemiblock|\blafb\b", ("Marked leftward QRS axis",)),
    (r"pre-?excitation|\bwpw\b|wolff", ("Short PR interval", "Delta waves")),
    (r"left ventricular hypertrophy|\blvh\b", ("High QRS voltages in chest leads",)),
    (r"right ventricular hypertrophy|\brvh\b", ("Tall R in V1 with deep S in V6",)),
    (r"left atrial (enlargement|abnormality)|\blae\b", ("Broad notched P waves",)),
    (r"right atrial (enlargement|abnormality)|\brae\b", ("Tall peaked P waves in inferior leads",)),
    (r"anterior infarct, possibly acute|acute anterior|anterior st elevation", ("ST elevation in V1-V4",)),
    (r"inferior infarct, possibly acute|acute inferior|inferior st elevation", ("ST elevation in II, III and aVF",)),
    (r"lateral infarct, possibly acute|acute lateral|lateral st elevation", ("ST elevation in I, aVL, V5 and V6",)),
    (r"old inferior|inferior infarct(,| -) age|inferior myocardial infarction, old", ("Q waves in inferior leads",)),
    (r"old anterior|anter\w* infarct(,| -) age|anterior infarct, old", ("Poor R wave progression",)),
    (r"pericarditis", ("Diffuse ST elevation",)),
    (r"st depression", ("ST segments below the baseline",)),
    (r"t wave inversion|inverted t", ("Negative T waves",)),
    (r"(long|prolonged) qt|qt prolongation|qtc prolonged", ("QTc above 480 ms",)),
    (r"low (qrs |limb lead )?voltage", ("Small QRS complexes in limb leads",)),
)  # fmt: skip
"""What a report says (letter case aside) -> what its ECG shows."""
_EVERYTHING = tuple(dict.fromkeys(feature for _, features in RULES for feature in features))


def features_for(report: str, made_up: float = 0.0) -> list[str]:
    """What the rules know of this report, and with the chance `made_up` for each of up to two more a feature that they
    do not give; the same for the same report."""
    told = report.casefold()
    found = list(dict.fromkeys(f for pattern, features in RULES if re.search(pattern, told) for f in features))
    digest = hashlib.sha256(told.encode()).digest()
    others = [feature for feature in _EVERYTHING if feature not in found]
    for k in range(2):
        chance, place = digest[4 * k] / 256, int.from_bytes(digest[4 * k + 1 : 4 * k + 4])
        if chance < made_up and others:
            found.append(others.pop(place % len(others)))
    return found


def completion(content: str, asked: str) -> dict[str, object]:
    """A chat completion that says `content`; tokens are counted as four characters each."""
    used = {"prompt_tokens": -(-len(asked) // 4), "completion_tokens": -(-len(content) // 4)}
    return {
        "object": "chat.completion",
        "model": MODEL,
        "choices": [{"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}],
        "usage": {**used, "total_tokens": sum(used.values())},
    }


class StubServer(ThreadingHTTPServer):
    """`POST .../chat/completions` and `GET .../models` on `address`. made_up: as of `features_for`.

    answered: how many questions so far. Raises OSError where the port is taken.
    """

    daemon_threads = True

    def __init__(self, host: str, port: int, made_up: float = 0.0) -> None:
        super().__init__((host, port), _Handler)
        self.made_up, self.answered = made_up, 0
        self.address = f"http://{host}:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    timeout = 60  # of a client that says nothing

    def do_GET(self) -> None:
        if self.path.rstrip("/").endswith("/models"):
            self._send(200, {"object": "list", "data": [{"id": MODEL, "object": "model"}]})
        else:
            self._send(404, {"error": {"message": f"nothing is served at {self.path}"}})

    def do_POST(self) -> None:
        assert isinstance(self.server, StubServer)
        try:
            length = int(self.headers.get("Content-Length", ""))
            asked = parse_json(self.rfile.read(min(length, 1 << 20)))
            text = asked["messages"][-1]["content"]
            report = str(text).partition("Report: ")[2] or str(text)
        except (ValueError, KeyError, IndexError, TypeError, RecursionError):
            self._send(400, {"error": {"message": "no chat request"}})
            return
        if not self.path.partition("?")[0].rstrip("/").endswith("/chat/completions"):
            self._send(404, {"error": {"message": f"nothing is served at {self.path}"}})
            return
        self.server.answered += 1
        self._send(200, completion(json.dumps(features_for(report, self.server.made_up)), str(asked["messages"])))

    def _send(self, code: int, values: dict[str, object]) -> None:
        content = json.dumps(values).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Nothing: reports are no lines for a terminal."""

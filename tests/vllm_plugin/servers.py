"""A server as a user starts it, in processes of its own, and clients for it."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request


class Server:
    """`hsa-factory serve` on a checkpoint; a context manager.

    Attributes:
        log: Path of what it says.
    """

    def __init__(self, directory, log, *options):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.log = log
        self.command = [sys.executable, "-m", "hsa_factory.cli", "serve", str(directory), "--port", str(self.port)]
        self.command += ["--dtype", "float32", "--enforce-eager", "--served-model-name", "m", *options]

    def __enter__(self):
        environment = {name: value for name, value in os.environ.items() if name != "VLLM_ENABLE_V1_MULTIPROCESSING"}
        environment |= {"VLLM_LOGGING_LEVEL": "INFO", "VLLM_CPU_OMP_THREADS_BIND": "0"}
        with open(self.log, "w", encoding="utf-8") as log:
            self.process = subprocess.Popen(
                self.command, stdout=log, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )
        try:
            self._wait()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *error):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                os.killpg(self.process.pid, signal.SIGKILL)

    def _wait(self, seconds=600):
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise AssertionError(f"the server ended: {self.said()[-3000:]}")
            try:
                if self.get("/health")[0] == 200:
                    return
            except OSError:
                time.sleep(0.5)
        raise AssertionError(f"the server is not up after {seconds} s: {self.said()[-3000:]}")

    def said(self):
        return self.log.read_text(encoding="utf-8", errors="replace")

    def get(self, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=60) as answer:
            return answer.status, answer.read().decode()

    def post(self, path, body):
        """Return status and body of an answer."""
        data = json.dumps({"model": "m", **body}).encode()
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{path}", data, {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=300) as answer:
                text = answer.read().decode()
                return answer.status, text if body.get("stream") else json.loads(text)
        except urllib.error.HTTPError as error:
            return error.code, json.loads(error.read())

    def chat(self, messages, number=16, **more):
        """Return the ids of prompt and answer, greedy."""
        body = {
            "messages": messages,
            "max_tokens": number,
            "temperature": 0,
            "ignore_eos": True,
            "return_token_ids": True,
        }
        status, answer = self.post("/v1/chat/completions", body | more)
        assert status == 200, answer
        return answer["prompt_token_ids"], answer["choices"][0]["token_ids"]

    def gauge(self, name):
        lines = [line for line in self.get("/metrics")[1].splitlines() if line.startswith(f"{name} ")]
        lines = lines or [line for line in self.get("/metrics")[1].splitlines() if line.startswith(f"{name}{{")]
        return float(lines[0].split()[-1])

    def memory(self):
        """Return the resident memory of its processes, in MiB: of the workers, and of all others."""
        workers = others = 0
        for name in os.listdir("/proc"):
            try:
                if not name.isdigit() or os.getpgid(int(name)) != self.process.pid:
                    continue
                with open(f"/proc/{name}/statm", encoding="ascii") as file:
                    size = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
                with open(f"/proc/{name}/comm", encoding="ascii") as file:
                    is_worker = "Worker" in file.read()
            except (OSError, ValueError):  # it has ended meanwhile
                continue
            workers, others = workers + is_worker * size, others + (not is_worker) * size
        return workers, others


async def stream(port, body, pieces=None):
    """Ask for a stream.

    Args:
        port: Of the server.
        body: The request.
        pieces: After how many pieces of the answer the client vanishes. None: it stays; 0: it vanishes at once.

    Returns:
        Whether the answer came to its end.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    data = json.dumps({"model": "m", "stream": True, **body}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
    writer.write(f"{head}\r\nConnection: close\r\n\r\n".encode() + data)
    await writer.drain()
    seen, done = 0, False
    try:
        while pieces is None or seen < pieces:
            line = await reader.readline()
            if not line:
                break
            seen += line.startswith(b"data:")
            done |= line.startswith(b"data: [DONE]")
    finally:
        writer.close()
    return done

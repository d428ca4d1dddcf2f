"""A proxy before an HTTP server that spoils answers as a test tells it."""

import asyncio
import threading

SLOW_DOWN = b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"


class FaultyProxy:
    """Forwards to `host:port`. `fault(number, method, path)` says what befalls a request (numbers count from 0):
    None, "slow down" (503), "slow" (a second late), "reset" (cut in the middle of the answer), "lost" (done, but
    the answer never arrives), "gone" (the connection is cut before anything happens), "hang" (no answer for long)."""

    def __init__(self, host, port):
        self.upstream, self.fault, self.seen, self.spoiled = (host, port), lambda *_: None, 0, 0
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)
        self.thread.start()
        started = asyncio.run_coroutine_threadsafe(asyncio.start_server(self.serve, "127.0.0.1", 0), self.loop)
        self.server = started.result(timeout=30)
        self.port = self.server.sockets[0].getsockname()[1]

    def stop(self):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(timeout=30)

    async def serve(self, reader, writer):
        try:
            await self.one(reader, writer)
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    async def one(self, reader, writer):
        head = await reader.readuntil(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        method, path, _ = lines[0].split(" ", 2)
        headers = {line.split(":", 1)[0].lower(): line.split(":", 1)[1].strip() for line in lines[1:] if ":" in line}
        number, self.seen = self.seen, self.seen + 1
        fault = self.fault(number, method, path)
        self.spoiled += fault is not None
        if fault == "gone":
            return writer.transport.abort()
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        if fault == "slow down":
            answer = f"HTTP/1.1 503 Slow Down\r\nContent-Length: {len(SLOW_DOWN)}\r\nConnection: close\r\n\r\n"
            writer.write(answer.encode() + SLOW_DOWN)
            return await writer.drain()
        if fault == "hang":
            await asyncio.sleep(60)
        if fault == "slow":
            await asyncio.sleep(1)
        kept = [line for line in lines if line and not line.lower().startswith("connection:")]
        upstream_reader, upstream_writer = await asyncio.open_connection(*self.upstream)
        upstream_writer.write("\r\n".join([*kept, "Connection: close", "", ""]).encode("latin-1") + body)
        await upstream_writer.drain()
        answer = await upstream_reader.read(-1)
        upstream_writer.close()
        if fault == "lost":
            return writer.transport.abort()
        if fault == "reset":
            writer.write(answer[: max(1, len(answer) - 10)])
            await writer.drain()
            return writer.transport.abort()
        writer.write(answer)
        await writer.drain()

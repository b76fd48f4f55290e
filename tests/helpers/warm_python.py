"""A ``python`` for the command lines of tests that has imported torch and the package already.

``warm_python(folder, ...)`` starts one process that imports, and writes ``python`` into the folder:
a client that hands over its arguments, environment, working folder and standard streams. The
process forks for each, and the child runs the program as the interpreter would. What takes 5 to
10 seconds of importing in a process of its own starts at once.
"""

import atexit
import contextlib
import gc
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path

CLIENT = """#!{python} -IS
import json, os, socket, sys
if sys.argv[1:2] == ["-m"]:
    os.execv({python!r}, [{python!r}, *sys.argv[1:]])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    request = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(request)
    status = server.recv(4)
sys.exit(int.from_bytes(status, "big") if status else 255)
"""


@contextlib.contextmanager
def warm_python(folder, environment, setup):
    """Put ``python`` into a folder, for the PATH of commands, and serve it.

    Args:
        folder (Path): an empty one.
        environment (dict[str, str]): of the process; libraries read theirs when they are imported.
        setup (str): what it does first, in Python: imports, stand-ins.
    """
    address = str(folder / "socket")
    server = subprocess.Popen(
        [sys.executable, __file__, address, setup],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert server.stdout.readline() == "ready\n", "the setup failed"
        client = folder / "python"
        client.write_text(CLIENT.format(python=sys.executable, address=address))
        client.chmod(0o755)
        yield
    finally:
        server.terminate()
        server.wait(10)
        server.stdout.close()


# ---- the process ----


def serve(address, setup):
    """Answer one client after the other; returns in each child, with what it is to run."""
    exec(setup, {})
    gc.freeze()  # the pages of what is imported stay shared
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    print("ready", flush=True)
    while True:
        client, _ = listener.accept()
        with client:
            request = receive(client)
            child = os.fork()
            if child == 0:
                listener.close()
                break
            for fd in request[3]:
                os.close(fd)
            _, status = os.waitpid(child, 0)
            code = os.waitstatus_to_exitcode(status)
            client.sendall((code if code >= 0 else 128 - code).to_bytes(4, "big"))
    return request


def receive(client):
    import json

    header, fds, _, _ = socket.recv_fds(client, 8, 3)
    size = int.from_bytes(header, "big")
    content = b""
    while len(content) < size:
        content += client.recv(size - len(content))
    return *json.loads(content), fds


def run(arguments, folder, environment, fds):
    """Run a program; returns its exit status."""
    import runpy

    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    try:
        if arguments[0] == "-c":
            sys.argv = ["-c", *arguments[2:]]
            sys.path[0] = ""
            exec(compile(arguments[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = arguments
            sys.path[0] = str(Path(arguments[0]).resolve().parent)
            runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as e:
        if isinstance(e.code, str):
            print(e.code, file=sys.stderr)
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        return 1
    return 0


if __name__ == "__main__":
    status = run(*serve(*sys.argv[1:]))
    # The end of an interpreter, but for taking down all that was imported.
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

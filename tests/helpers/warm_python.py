"""A ``python`` for command lines that has imported torch and the package already.

The process of the tests forks a server as it is after all imports. ``path()`` is a client, which
hands over its arguments, environment, working folder and standard streams; the server forks for
each, and the child runs the program as an interpreter would. A new interpreter would import for 5
to 10 seconds; and a process forked later would wait for threads of hotcoco that it does not have.
"""

import atexit
import logging
import multiprocessing.util
import os
import shutil
import signal
import socket
import sys
import tempfile
import threading
from pathlib import Path

import torch

CLIENT = """#!{python} -IS
import json, os, socket, sys
words = [word for word in sys.argv[1:] if word not in ("-W", "ignore")]
if words[:1] == ["-m"]:
    os.execv({python!r}, [{python!r}, *words])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    request = json.dumps([words, os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(request).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(request)
    status = server.recv(4)
sys.exit(int.from_bytes(status, "big") if status else 255)
"""
# A variable of the environment: Python that a program runs first, such as stand-ins.
SETUP = "RSB_TEST_SETUP"

_folder = None


def path():
    """The client, a file called ``python``."""
    return _folder / "python"


def start_server():
    global _folder
    _folder, parent = Path(tempfile.mkdtemp(prefix="warm_python_")), os.getpid()
    address = str(_folder / "socket")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(address)
    listener.listen()
    if os.fork() == 0:
        try:
            _serve(listener, parent)
        finally:
            os._exit(0)
    listener.close()
    path().write_text(CLIENT.format(python=sys.executable, address=address))
    path().chmod(0o755)


def stop_server():
    """Remove the folder, without which the server ends."""
    if _folder is not None:
        shutil.rmtree(_folder, ignore_errors=True)


# ---- the server ----


def _serve(listener, parent):
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for the processes of clients
    torch.set_num_threads(1)
    listener.settimeout(2)
    while os.getppid() == parent and _folder.exists():
        try:
            client, _ = listener.accept()
        except TimeoutError:
            continue
        if os.fork() == 0:
            listener.close()
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            _answer(client)
            return
        client.close()


def _answer(client):
    import json

    client.setblocking(True)
    header, fds, _, _ = socket.recv_fds(client, 8, 3)
    size, content = int.from_bytes(header, "big"), b""
    while len(content) < size:
        content += client.recv(size - len(content))
    child = os.fork()
    if child == 0:
        client.close()
        _become(*json.loads(content), fds)
    for fd in fds:
        os.close(fd)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    client.sendall((code if code >= 0 else 128 - code).to_bytes(4, "big"))


def _become(words, folder, environment, fds):
    """Run a program, and end as an interpreter does, but for taking down all that is imported."""
    for number, fd in enumerate(fds):
        os.dup2(fd, number)
        os.close(fd)
    sys.stdin, sys.stdout = open(0, closefd=False), open(1, "w", closefd=False)  # not pytest's
    sys.stderr = open(2, "w", buffering=1, closefd=False)
    atexit._clear()
    for function in (logging.shutdown, multiprocessing.util._exit_function):
        atexit.register(function)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    status = _run(words)
    threading._shutdown()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status)


def _run(words):
    import runpy

    try:
        exec(os.environ.get(SETUP, ""), {})
        if words[0] == "-c":
            sys.argv = ["-c", *words[2:]]
            sys.path.insert(0, "")
            exec(compile(words[1], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = words
            sys.path.insert(0, str(Path(words[0]).resolve().parent))
            runpy.run_path(words[0], run_name="__main__")
    except SystemExit as e:
        if isinstance(e.code, str):
            print(e.code, file=sys.stderr)
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    except BaseException:
        sys.__excepthook__(*sys.exc_info())
        return 1
    return 0

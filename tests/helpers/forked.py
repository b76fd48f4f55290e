"""Programs in processes forked from this one as it was after the imports.

A new interpreter would import torch and Detectron2 for seconds; and a process that is forked later
would lack the threads of hotcoco, for which it then waits forever.
"""

import importlib
import os
import pickle
import socket
import sys
import traceback

import torch

_server = None


def start_server():
    """Fork the process from which all programs are forked; it ends with this one."""
    global _server
    _server, connection = socket.socketpair()
    if os.fork():
        connection.close()
        return
    _server.close()
    torch.set_num_threads(1)  # it has read OMP_NUM_THREADS already
    try:
        with connection.makefile("rwb") as stream:
            while True:
                request = pickle.load(stream)  # raises EOFError at the end
                if isinstance(request, int):
                    answer = os.waitstatus_to_exitcode(os.waitpid(request, 0)[1])
                else:
                    answer = os.fork() or _run(*request)
                pickle.dump(answer, stream)
                stream.flush()
    except EOFError:
        os._exit(0)


def _ask(request):
    with _server.makefile("rwb") as stream:
        pickle.dump(request, stream)
        stream.flush()
        return pickle.load(stream)


def start(module, words, log, folder, **environment):
    """Start ``main(words)`` of a module.

    Args:
        module (str): to import; its ``main`` may call sys.exit.
        words (list[str]): of a command line.
        log (Path): gets what it prints.
        folder (Path): the working directory.
        environment (dict[str, str]): in addition to this process's.

    Returns:
        int: the id of the process.
    """
    return _ask((module, list(map(str, words)), str(log), str(folder), environment))


def wait(process, log):
    """Wait for a process, which must succeed."""
    status = _ask(process)
    with open(log) as f:
        assert status == 0, f.read()[-5000:]


def _run(module, words, log, folder, environment):
    status = 1
    try:
        with open(log, "w") as f:
            os.dup2(f.fileno(), 1)
            os.dup2(f.fileno(), 2)
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__  # which pytest replaces
        os.environ.update(environment)
        os.chdir(folder)
        importlib.import_module(module).main(words)
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

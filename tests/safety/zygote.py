"""Starts scripts without waiting for their imports: has imported all there is, and forks for every line that it reads.

Of an order {"script", "args", "faults", "out"} the answer is the new process's id, of {"wait": id} its exit code.
"""

import json
import os
import sys
import traceback

import faults
import torch

import sample
import train

SCRIPTS = {"train.py": train, "sample.py": sample}


def become(order):
    """The child: what `python examples/SCRIPT ARGS` would be."""
    for descriptor, ending in ((1, "out"), (2, "err")):
        file = os.open(f"{order['out']}.{ending}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, descriptor)
        os.close(file)
    code = 0
    try:
        for name, *values in order["faults"]:
            getattr(faults, name)(*values)
        sys.argv = [order["script"], *order["args"]]
        script = SCRIPTS[order["script"]]
        script.run(script.main)
    except SystemExit as end:
        code = end.code or 0
        if isinstance(code, str):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve():
    torch.set_num_threads(1)
    print("ready", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        if "wait" in order:
            answer = os.waitstatus_to_exitcode(os.waitpid(order["wait"], 0)[1])
        elif (answer := os.fork()) == 0:
            become(order)
        print(answer, flush=True)


serve()

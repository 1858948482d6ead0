"""What SLURM's commands do, as far as a launcher sees it, on this machine: `sbatch` runs the file, `srun` its tasks.

Written as scripts into a folder for the PATH. Nodes are only numbers here; all tasks run on this machine.
"""

import json
import os
import sys
from pathlib import Path

COMMON = """#!{python}
import json, os, re, signal, subprocess, sys, time
from pathlib import Path
state = Path({state!r})
"""

# Starts the job in the background, again as long as somebody queues it again.
SBATCH = """
flags = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", Path(sys.argv[1]).read_text(), re.MULTILINE))
job = str(17 + len(list(state.glob("*.sh"))))
(state / f"{job}.sh").write_text(Path(sys.argv[1]).read_text())
nodes = int(flags["nodes"])
node_list = ",".join(["127.0.0.1"] * nodes)
environment = os.environ | dict(
    SLURM_JOB_ID=job, SLURM_JOB_NUM_NODES=str(nodes), SLURM_JOB_NODELIST=node_list,
    SLURM_NTASKS=str(nodes * int(flags["ntasks-per-node"])),
)
print("Submitted batch job", job, flush=True)
if os.fork():
    os._exit(0)
os.setsid()
log = os.open(state / f"{job}.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
for descriptor in (0, 1, 2):
    os.dup2(log, descriptor)
while True:
    code = subprocess.run(["bash", state / f"{job}.sh"], env=environment).returncode
    if not (state / f"{job}.requeue").exists():
        break
    (state / f"{job}.requeue").rename(state / f"{job}.requeued")
(state / f"{job}.code").write_text(str(code))
"""

# One process per task. Ends them all when the job is queued again, or when one fails and that is to end the others.
SRUN = """
job, tasks = os.environ["SLURM_JOB_ID"], int(os.environ["SLURM_NTASKS"])
per_node = tasks // int(os.environ["SLURM_JOB_NUM_NODES"])
words = sys.argv[1:]
output = words[words.index("--output") + 1]
command = words[words.index("--output") + 2:]
running = []
for task in range(tasks):
    places = dict(SLURM_PROCID=task, SLURM_LOCALID=task % per_node, SLURM_NODEID=task // per_node)
    log = open(output.replace("%j", job).replace("%t", str(task)), "a")
    environment = os.environ | {key: str(value) for key, value in places.items()}
    running.append(subprocess.Popen(command, stdout=log, stderr=log, env=environment))
(state / f"{job}.pids").write_text(json.dumps([process.pid for process in running]))
while any(process.poll() is None for process in running):
    failed = any(process.poll() for process in running) and os.environ.get("SLURM_KILL_BAD_EXIT") == "1"
    if failed or (state / f"{job}.requeue").exists():
        for process in running:
            process.kill()
    time.sleep(0.1)
sys.exit(max(abs(process.returncode) for process in running))
"""

SCONTROL = """
assert sys.argv[1] == "requeue"
(state / f"{sys.argv[2]}.requeue").touch()
"""

SACCT = """
print("JobID|State|NodeList")
for file in state.glob("*.sh"):
    code = state / f"{file.stem}.code"
    ended = "COMPLETED" if code.exists() and code.read_text() == "0" else "FAILED"
    print(f"{file.stem}|{ended if code.exists() else 'RUNNING'}|127.0.0.1")
"""


class FakeSlurm:
    """The commands in `<folder>/bin`, and what they leave in `<folder>/state`."""

    def __init__(self, folder: Path) -> None:
        self.bin, self.state = folder / "bin", folder / "state"
        self.bin.mkdir(parents=True)
        self.state.mkdir()
        common = COMMON.format(python=sys.executable, state=str(self.state))
        scripts = {"sbatch": SBATCH, "srun": SRUN, "scontrol": SCONTROL, "sacct": SACCT}
        for name, text in scripts.items():
            (self.bin / name).write_text(common + text)
            (self.bin / name).chmod(0o755)

    @property
    def path(self) -> str:
        """For the variable PATH."""
        return f"{self.bin}{os.pathsep}{os.environ['PATH']}"

    def batch_file(self, job: int = 17) -> str:
        """What was submitted."""
        return (self.state / f"{job}.sh").read_text()

    def pids(self, job: int = 17) -> list[int]:
        """The tasks that were started last, in the order of ranks; none before they were."""
        file = self.state / f"{job}.pids"
        return json.loads(file.read_text()) if file.exists() else []

    def was_requeued(self, job: int = 17) -> bool:
        """Whether the job was queued again at least once."""
        return (self.state / f"{job}.requeued").exists()

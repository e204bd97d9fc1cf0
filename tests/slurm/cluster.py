"""A SLURM cluster on this machine: one node with two cores and two GPUs, which are plain files.

It lives in namespaces of its own: its processes, its network, its host name and its /etc/slurm (the only place where
jobs look for the configuration) are seen only from inside, and all of it ends when its first process does, which ends
with the process that made it, however that ends.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

NODE = "node1"
ADDRESS = "192.0.2.1"  # SLURM looks for an address that is not the loopback's; this one is for examples
MEMORY = 16000  # megabytes of the node
TOOLS = ("unshare", "nsenter", "ip", "munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue")
NAMESPACES = ("unshare", "--mount", "--pid", "--net", "--uts", "--fork", "--kill-child", "--mount-proc")
ACCOUNTING_TOOLS = ("slurmdbd", "sacct", "sacctmgr", "mariadbd", "mariadb-install-db")

SLURM = """
ClusterName=atlas
SlurmctldHost={node}({address})
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/slurmctld
SlurmdSpoolDir={folder}/slurmd
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=sched_interval=5,bf_interval=5,batch_sched_delay=1
ReturnToService=2
SlurmdTimeout=300
KillWait=15
MessageTimeout=30
MpiDefault=none
SwitchType=switch/none
GresTypes=gpu
NodeName={node} NodeAddr={address} CPUs=2 RealMemory={memory} Gres=gpu:2 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE OverTimeLimit=0 State=UP
PartitionName=other Nodes=ALL MaxTime=INFINITE State=UP
"""
WITHOUT_ACCOUNTING = """
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
"""
WITH_ACCOUNTING = """
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageTRES=gres/gpu
AccountingStorageHost=127.0.0.1
AccountingStoragePass={folder}/munge.socket
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=2
"""
SLURMDBD = """
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
SlurmUser=root
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
"""
# The first process stays until its standard input ends, and with it every other one in its namespaces. What the kernel
# kills elsewhere on this machine for want of memory is none of the node's (/proc/vmstat).
START = """
set -e
mount --bind {folder}/etc /etc/slurm
mount --bind {folder}/hosts /etc/hosts
cp /proc/vmstat {folder}/vmstat
mount --bind {folder}/vmstat /proc/vmstat
hostname {node}
ip link set lo up
ip address add {address}/32 dev lo
munged --foreground --force --key-file={folder}/munge.key --socket={folder}/munge.socket --num-threads=2 \
    --log-file={folder}/munged.log --pid-file={folder}/munged.pid --seed-file={folder}/munged.seed >/dev/null 2>&1 &
cat >/dev/null
"""


def lacks(tools: Sequence[str] = TOOLS) -> str | None:
    """Why no cluster can be had here, or None."""
    if os.geteuid() != 0:
        return "only root can start a cluster"
    missing = [tool for tool in tools if shutil.which(tool) is None]
    if missing:
        return f"not installed: {', '.join(missing)} (.ci/run names the packages)"
    if subprocess.run([*NAMESPACES, "true"], capture_output=True).returncode:
        return "this machine gives no namespaces (unshare)"
    return None


class Cluster:
    """A running cluster: `with Cluster(folder) as cluster: cluster.run("sinfo")`.

    folder: for configuration, state and logs of the daemons. accounting: keep records of jobs in a data base
    (`ACCOUNTING_TOOLS` are needed), as `sacct` wants. settings: further lines of slurm.conf.
    """

    def __init__(self, folder: Path, accounting: bool = False, settings: str = ""):
        self.folder, self.accounting, self.settings = folder, accounting, settings

    def __enter__(self) -> Cluster:
        self._configure()
        script = START.format(folder=self.folder, node=NODE, address=ADDRESS)
        self._first = subprocess.Popen([*NAMESPACES, "bash", "-c", script], stdin=subprocess.PIPE)
        try:
            self._until("munged answers", lambda: (self.folder / "munge.socket").exists())
            self._inside = self._child()
            if self.accounting:
                self._start_accounting()
            self.start("slurmctld", "-D")
            self.until("slurmctld answers", "scontrol", "ping")
            self.start("slurmd", "-D", "-N", NODE)
            self._until("the node is idle", lambda: "idle" in self.output("sinfo", "-h", "-o", "%t"))
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *problem: object) -> None:
        self._first.stdin.close()
        try:
            self._first.wait(10)
        except subprocess.TimeoutExpired:
            self._first.kill()
            self._first.wait()

    def run(self, *command: object, cwd: Path = Path("/"), **more) -> subprocess.CompletedProcess:
        """Run a command inside the cluster, as on its login node; standard error comes with the output."""
        options = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True, "timeout": 300} | more
        return subprocess.run(self.entering(command, cwd), **options)

    def start(self, *command: object, cwd: Path = Path("/"), **more) -> subprocess.Popen:
        """Start a command inside the cluster, which ends with it; its output goes to a file of its name."""
        with (self.folder / f"{command[0]}.out").open("ab") as log:
            options = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": subprocess.STDOUT} | more
            return subprocess.Popen(self.entering(command, cwd), **options)

    def output(self, *command: object) -> str:
        return self.run(*command).stdout.strip()

    def start_soon(self, job: str) -> None:
        """Start a job that went back into the queue, where it would wait two minutes. Ten seconds are enough for the
        node to forget the job's last try, without which it would refuse the new one."""
        self._until(f"job {job} is in the queue", lambda: self.output("squeue", "-hj", job, "-o%T") == "PENDING")
        self.output("scontrol", "update", f"jobid={job}", "StartTime=now+10")

    def until(self, what: str, *command: object, seconds: float = 60) -> None:
        """Wait for a command to succeed."""
        self._until(what, lambda: self.run(*command).returncode == 0, seconds)

    def _until(self, what: str, holds, seconds: float = 60) -> None:
        wait_until(lambda: self._first.poll() is not None or holds(), f"{what} ({self.folder})", seconds)
        if self._first.poll() is not None:
            raise RuntimeError(f"the cluster ended before {what}; see the logs in {self.folder}")

    def entering(self, command: Sequence[object], cwd: Path = Path("/")) -> list[str]:
        """The command, such that it runs inside the cluster in the folder `cwd`."""
        inside = f"--target={self._inside}", "--mount", "--pid", "--net", "--uts"
        return ["nsenter", *inside, "--", "env", f"--chdir={cwd}", *map(str, command)]

    def _child(self) -> int:
        children = Path(f"/proc/{self._first.pid}/task/{self._first.pid}/children").read_text().split()
        return int(children[0])

    def _configure(self) -> None:
        for name in ("etc", "slurmctld", "slurmd"):
            (self.folder / name).mkdir(parents=True, exist_ok=True)
        names = {"folder": self.folder, "node": NODE, "address": ADDRESS, "memory": MEMORY}
        gpus = [self.folder / f"gpu{index}" for index in range(2)]
        for gpu in gpus:
            gpu.touch()
        own = WITH_ACCOUNTING if self.accounting else WITHOUT_ACCOUNTING
        self._write("etc/slurm.conf", (SLURM + own).format(**names) + self.settings)
        self._write("etc/gres.conf", "".join(f"NodeName={NODE} Name=gpu File={gpu}\n" for gpu in gpus))
        self._write("hosts", f"127.0.0.1 localhost\n{ADDRESS} {NODE}\n")
        self._write("munge.key", os.urandom(64).hex())
        if self.accounting:
            self._write("etc/slurmdbd.conf", SLURMDBD.format(**names))

    def _write(self, name: str, text: str) -> None:
        (self.folder / name).write_text(text)
        (self.folder / name).chmod(0o600 if name in ("munge.key", "etc/slurmdbd.conf") else 0o644)

    def _start_accounting(self) -> None:
        data = self.folder / "mariadb"
        made = self.run("mariadb-install-db", f"--datadir={data}", "--user=root", "--skip-test-db")
        assert made.returncode == 0, made.stdout
        setup = self.folder / "setup.sql"
        setup.write_text("CREATE USER slurm IDENTIFIED BY 'slurm';\nGRANT ALL ON slurm_acct_db.* TO slurm;\n")
        more = ("--innodb-buffer-pool-size=32M", "--skip-log-bin", "--skip-name-resolve")
        self.start(
            *("mariadbd", "--no-defaults", f"--datadir={data}", f"--socket={data}/socket", "--user=root"),
            *(f"--pid-file={data}/pid", "--bind-address=127.0.0.1", f"--init-file={setup}", *more),
        )
        self._until("the data base answers", (data / "socket").exists)
        self.start("slurmdbd", "-D")
        self.until("slurmdbd answers", "sacctmgr", "-i", "show", "cluster")
        self.output("sacctmgr", "-i", "add", "cluster", "atlas")


def wait_until(holds, what: str, seconds: float) -> None:
    """Wait for a condition; RuntimeError with `what` after so many seconds."""
    end = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > end:
            raise RuntimeError(f"waited {seconds:.0f} s in vain until {what}")
        time.sleep(0.1)

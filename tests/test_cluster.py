"""What docs/cluster.md has users type: as far as one machine without SLURM can tell."""

import os
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

DOC = (Path(__file__).parents[1] / "docs" / "cluster.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", DOC, re.DOTALL)
COMMANDS = [
    line.partition(" #")[0].strip()
    for kind, block in BLOCKS
    for line in block.replace("\\\n", "").splitlines()
    if kind == "bash" and re.match(r"(segmod-train|srun|torchrun)", line)
]
(SCRIPT,) = [block for _, block in BLOCKS if block.startswith("#!")]


@pytest.mark.parametrize("line", COMMANDS)
def test_commands_compose(line: str, segmod: Any, capfd: Any) -> None:
    words = [word for word in shlex.split(re.sub(r".*(segmod-train|segmod train)", "", line)) if word != "-m"]
    fixed = [re.sub(r"=tag\(.*", "=0.1", word).split(",")[0] for word in words if not word.startswith("hydra")]
    hydra = [word for word in words if word.startswith("hydra")]  # of a sweep: no job is composed for --cfg hydra
    assert segmod("train", "--cfg", "job", *(word for word in fixed if not word.startswith("sweep"))) == 0
    if hydra:
        assert segmod("train", "--cfg", "hydra", *(word for word in words if word.startswith(("hydra", "sweep")))) == 0


def test_an_agent_of_wandb_forms_a_command_that_is_taken(segmod: Any, capfd: Any) -> None:
    (sweep,) = [yaml.safe_load(block) for kind, block in BLOCKS if kind == "yaml"]
    drawn = {"model.optimizer.lr": {"value": 3.25e-05}, "data.batch_size": {"value": 4}}
    assert set(drawn) == set(sweep["parameters"])
    found = create_sweep_command_args({"args": drawn})
    words: list[str] = []
    for word in create_sweep_command(sweep["command"]):
        words += found["args_no_hyphens"] if word == "${args_no_hyphens}" else [str(word)]
    assert words[:2] == ["${env}", sweep["program"]]
    assert segmod("train", "--cfg", "job", *words[2:]) == 0
    cfg = yaml.safe_load(capfd.readouterr().out)
    assert (float(cfg["model"]["optimizer"]["lr"]), cfg["data"]["batch_size"]) == (3.25e-05, 4)
    assert (sweep["metric"]["name"], cfg["logger"]["wandb"]["offline"]) == (
        cfg["callbacks"]["checkpoints"]["monitor"],
        False,
    )


# -- in processes of their own ---------------------------------------------------------------------------------------

TWO = ("trainer=ddp", "trainer.accelerator=cpu", "name=x")
LONG = ("trainer.max_epochs=300", "trainer.check_val_every_n_epoch=300", "callbacks.checkpoints.every_n_steps=5")


def environment(**more: str) -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k not in ("PL_GLOBAL_SEED", "LOCAL_RANK", "WORLD_SIZE")} | more


def start(command: list[str], **more: str) -> subprocess.Popen[str]:
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(command, env=environment(**more), start_new_session=True, **pipes)


def wait_for_checkpoint(*processes: subprocess.Popen[str]) -> Path:
    for _ in range(1200):
        if found := list(Path("runs").glob("**/last.ckpt")):
            return found[0].parents[1]
        assert all(process.poll() is None for process in processes)
        time.sleep(0.1)
    raise AssertionError("no checkpoint")


@pytest.mark.slow
@pytest.mark.parametrize("lost", ["nothing", "a worker", "a machine"])
def test_two_machines_of_torchrun_train_one_run(lost: str, segmod: Any, small: tuple[str, ...]) -> None:
    port = 29310 + len(lost)
    torchrun = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d"]
    train = ["-m", "segmod", "train", *small, *TWO, "trainer.devices=1", "trainer.num_nodes=2"]
    length = ("trainer.max_epochs=1",) if lost == "nothing" else ("trainer.max_epochs=100000", *LONG[1:])
    agents = [
        start([sys.executable, *torchrun, f"--rdzv-endpoint=127.0.0.1:{port}", *train, *length], OMP_NUM_THREADS="1")
        for _ in range(2)
    ]
    try:
        if lost != "nothing":
            run = wait_for_checkpoint(*agents)
            (worker,) = Path(f"/proc/{agents[1].pid}/task/{agents[1].pid}/children").read_text().split()
            os.kill(int(worker), signal.SIGKILL)
            if lost == "a machine":
                os.kill(agents[1].pid, signal.SIGKILL)
        told = [agent.communicate(timeout=120)[0] for agent in agents]
    finally:
        for agent in agents:
            if agent.poll() is None:
                os.killpg(agent.pid, signal.SIGKILL)
    if lost == "nothing":
        assert [agent.returncode for agent in agents] == [0, 0], told
        (result,) = Path("runs").glob("**/metrics.json")
        assert (result.parent / "rank1.log").exists()
        assert "ranks above 0 print to" in (result.parent / "train.log").read_text()
    else:
        assert all(agent.returncode for agent in agents)
        assert not (run / ".lock").exists()


SRUN = f"""#!{sys.executable}
import os, subprocess, sys
node = {{"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_NNODES": "1", "SLURM_NODEID": "0",
        "SLURM_NODELIST": "127.0.0.1", "SLURM_JOB_NAME": "x"}}
train = [sys.executable, "-m", "segmod", "train", *sys.argv[2:]]
places = [{{"SLURM_PROCID": str(k), "SLURM_LOCALID": str(k)}} for k in range(2)]
tasks = [subprocess.Popen(train, env=os.environ | node | place) for place in places]
open("tasks", "w").write(" ".join(str(task.pid) for task in tasks))
sys.exit(max(task.wait() for task in tasks))
"""


@pytest.mark.slow
def test_the_script_of_slurm_saves_and_is_queued_again(segmod: Any, small: tuple[str, ...]) -> None:
    for name, text in (("srun", SRUN), ("scontrol", '#!/bin/bash\necho "$@" >> queue\n')):
        path = Path("bin") / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    words = shlex.join(["segmod-train", *small, *TWO, "trainer.devices=2", *LONG])
    Path("job.sh").write_text(re.sub(r"(?<=srun )segmod-train .*", words, SCRIPT))
    script = ["bash", "job.sh"]
    slurm = {"PATH": f"{Path('bin').absolute()}:{os.environ['PATH']}", "SLURM_JOB_ID": "4711", "OMP_NUM_THREADS": "1"}
    first = start(script, **slurm)
    run = wait_for_checkpoint(first)
    for task in Path("tasks").read_text().split():
        os.kill(int(task), signal.SIGUSR1)
    told, _ = first.communicate(timeout=120)
    assert first.returncode == 128 + signal.SIGUSR1, told
    assert Path("queue").read_text() == "requeue 4711\n"
    assert not (run / "metrics.json").exists()
    again = start(script, **slurm)
    told, _ = again.communicate(timeout=280)
    assert again.returncode == 0, told
    assert "resuming" in told
    assert (run / "metrics.json").exists()
    assert Path("queue").read_text() == "requeue 4711\n"

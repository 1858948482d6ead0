"""LeRobot's trainer, sharded by FSDP on CPUs: what `accelerate launch --use_fsdp` makes of it on GPUs.

accelerate shards on devices only, and here would quietly train by DDP. So it is told that it shards, in this process
alone; torch's FSDP then does with our policy what it does there, over gloo. But for its gathering, which ends in a
segmentation fault on CPUs (torch 2.11): run it with --save_checkpoint=false.
"""

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from lerobot.scripts.lerobot_train import train

import lerobot_policy_vla_mot  # noqa: F401


def main() -> None:
    accelerator = Accelerator(cpu=True, step_scheduler_with_optimizer=False)
    told = {"distributed_type": DistributedType.FSDP, "device": torch.device("cpu")}
    PartialState._shared_state |= told
    AcceleratorState._shared_state |= told | {
        "fsdp_plugin": FullyShardedDataParallelPlugin(
            fsdp_version=1,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["JointLayer"],
            use_orig_params=True,
        )
    }
    print("sharding:", accelerator.distributed_type)
    train(accelerator=accelerator)


if __name__ == "__main__":
    main()

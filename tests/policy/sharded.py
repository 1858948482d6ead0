"""LeRobot's trainer, sharded by FSDP on CPUs: what `accelerate launch --use_fsdp` makes of it on GPUs.

accelerate shards on devices only, and here would quietly train by DDP. So it is told that it shards, in this process
alone; torch's FSDP then does with our policy what it does there, over gloo. But for LeRobot's gathering, which moves
weights off their device: on CPUs torch 2.11 ends in a segmentation fault then. Run it with --save_checkpoint=false; at
the end weights are gathered where they are, and saved as LeRobot saves them into the folder `gathered`.
"""

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType, FullyShardedDataParallelPlugin
from lerobot.scripts.lerobot_train import train
from torch.distributed.fsdp import FullStateDictConfig, FullyShardedDataParallel, StateDictType

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

    def gather(policy: FullyShardedDataParallel) -> None:
        whole = FullStateDictConfig(offload_to_cpu=False, rank0_only=False)
        with FullyShardedDataParallel.state_dict_type(policy, StateDictType.FULL_STATE_DICT, whole):
            weights = policy.state_dict()
        if accelerator.is_main_process:
            accelerator.unwrap_model(policy).save_pretrained("gathered", state_dict=weights)

    accelerator.get_state_dict = gather  # LeRobot asks for it when training ends
    train(accelerator=accelerator)


if __name__ == "__main__":
    main()

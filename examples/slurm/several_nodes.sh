#!/usr/bin/env bash
# LLaVA-1.5-7B spread over two nodes of eight GPUs (FSDP2); checkpoints are folders that every process writes into.
#   sbatch --job-name mine examples/slurm/several_nodes.sh --data.train_file my/train.json --data.image_folder my/images
# What follows the name of this file goes to `fit` and wins over what is set here. The run is in runs/<job name>.
#SBATCH --job-name=llava
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=8
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=8
#SBATCH --mem=256G
#SBATCH --time=08:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:TERM@180
set -euo pipefail

# export HF_HOME=/shared/huggingface HF_HUB_OFFLINE=1 # where nodes have no network: fetch the model beforehand
run=runs/$SLURM_JOB_NAME
fit=(
  python -m dowser_pl fit -c base -c model/llava_1_5_7b -c data/llava_json -c method/model_dowser -c strategy/fsdp2
  --trainer.strategy.init_args.save_distributed_checkpoint true
  --trainer.devices "$SLURM_NTASKS_PER_NODE" --trainer.num_nodes "$SLURM_NNODES"
  --model.optimizer.lr 2.0e-4 --checkpoint.every_n_steps 100
  "$@" --trainer.default_root_dir "$run" --ckpt_path last
)

# From here on the same in all examples. Three minutes before the time is over SLURM sends SIGTERM to this script alone
# (B:TERM@180). The run then ends after its step, without another checkpoint, and the job goes back into the queue, where
# the same command goes on from the last one. A run that fails is not started again, nor one that saved nothing.
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK OMP_NUM_THREADS=$SLURM_CPUS_PER_TASK
mkdir -p "$run"
touch "$run/.job-began"
status=0 told=no
srun --kill-on-bad-exit=1 "${fit[@]}" &
step=$!
trap 'told=yes; kill -TERM "$step" || true' TERM
wait "$step" || status=$?
while kill -0 "$step" 2>/dev/null; do # the signal has ended the wait, not the run
  status=0
  wait "$step" || status=$?
done
if [ "$told" = yes ] && [ "$status" -ne 0 ]; then
  if [ "$run/checkpoints/last.ckpt" -nt "$run/.job-began" ]; then
    scontrol requeue "$SLURM_JOB_ID"
  else
    echo "not requeued: this job saved no checkpoint, set --time higher or --checkpoint.every_n_steps lower" >&2
  fi
fi
exit "$status"

#!/bin/bash
# sbatch recipes/launch/slurm.sh            Two nodes of four GPUs. Not run here: it needs a Slurm cluster.
#SBATCH --job-name=greedylr
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --cpus-per-task=32
#SBATCH --time=04:00:00

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node 4 \
    --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head:29500" \
    -m recipes.finetune_llm --model Qwen/Qwen3-0.6B --dataset HuggingFaceH4/ultrachat_200k --split train_sft \
    --max-length 1024 --max-steps 1000 --bf16 --output-dir "runs/$SLURM_JOB_ID"

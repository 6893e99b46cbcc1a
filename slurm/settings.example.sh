# What submit_pipeline.sh makes, and where: copy this file, and change what is different for you. It is bash.

DATA_DIR=/data/redpajama                # the RedPajama download
WORK_DIR=/data/cepe                     # where everything is written
PYTHON=python3                          # of an environment that has this project's libraries
SBATCH_FLAGS=""                         # for every job: --partition=… --account=…
GPU_FLAGS="--gpus=1"                    # for the jobs that want a GPU

TOKENIZER=meta-llama/Llama-2-7b-hf
TOKENIZE_SHARDS=100

SAMPLER_FLAGS=""                        # for both samplers: --domains, --seed, --test_fraction, --allow_shortage, …
                                        # (8k_ab wants it: arxiv has a little less than its half of 5 million)
AB_SETS=("8k_ab 8192 4096 1000 5000000" "32k_ab 32768 4096 1000 0" "128k_ab 131072 4096 1000 0")
CONCAT_SET="8k_concat 4096 4096 35000 2500000 2e6"   # empty for none, and for no retrieval
RETRIEVAL_SHARDS=100
CONCAT_FLAGS=""                         # such as --retrieval_chunk_size

TEACHER=meta-llama/Llama-2-7b-chat-hf   # empty for none
TEACHER_INPUTS=("8k_ab/train arxiv" "8k_ab/train book")
TEACHER_SHARDS=100
TEACHER_FLAGS="--num_encoder_tokens 2048 --num_decoder_tokens 2048"

ENCODER=facebook/contriever             # empty for none
EMBED_SHARDS=100
EMBED_FLAGS=""
SEARCH_SPLIT=test                       # whose rows get passages
SEARCH_SHARDS=20
SEARCH_FLAGS="--topk 100 --exclude_overlap 50"

"""What the tables of docs/benchmarks.md and of its Chinese twin say around the numbers."""

VARIANTS = {
    "plain": ("plain LLaMA-Factory", "原版 LLaMA-Factory"),
    "hsa": ("HSA, this project", "本项目的 HSA"),
    "forks": ("HSA, the forks' way", "旧 fork 的 HSA"),
}
WAYS = {
    "one sequence, turns": ("one sequence, `noise_turns: {noise_turns}`", "整条序列，`noise_turns: {noise_turns}`"),
    "one sequence, plain": ("one sequence without HSA", "整条序列，不用 HSA"),
    "a sample a reply": ("a sample a reply, old observations cut", "每个回复一个样本，截去旧观察"),
}
TURN_LAYOUTS = {
    "scattered": ("window of 50 tokens", "50 token 的窗口"),
    "turns": ("turns of real trajectories", "真实轨迹的轮次"),
    "synthetic turns": ("turns of 200 to 700 tokens", "200 到 700 token 的轮次"),
}
TEXTS = {
    "docs/benchmarks.md": {
        "language": 0,
        "plots": (
            "Time and memory of a training step by length",
            "Speed-up and memory of attention by length",
            "Tokens a second and memory of the cache by length",
            "Tokens, time and memory of training a trajectory in one sequence and reply by reply",
        ),
        "setting": "{machine}, threads: {threads}, {clock}",
        "clocks": {"wall": "wall time", "cpu": "processor time"},
        "step": "One LLaMA-Factory SFT step of the tiny Qwen3, batch of 1, one CPU thread ({machine}; "
        "`python benchmarks/sft_step.py`):",
        "head": ("tokens", "variant", "ms a step", "time / plain", "forks' way / this", "memory of the step, MiB"),
        "attention": "Attention, forward and backward, float32, batch of 1, {heads} heads of {head_size}, {kv_heads} key/value "
        "heads ({setting}; `python benchmarks/attention.py`): how many times faster than causal "
        "`scaled_dot_product_attention` without HSA, by the share of GLOBAL and LANDMARK tokens; in brackets the limit, "
        "causal pairs over visible pairs. Tokens of a type scattered one by one, the worst case of a layout:",
        "attention_head": ("tokens", "causal, ms", "extra memory, MiB (causal)"),
        "turns": "Where NOISE is seen in turns, a key is seen for hundreds of tokens: more pairs are visible, so the limit is lower. {tokens} tokens, {share} of them GLOBAL or LANDMARK, scattered ({machine}; "
        "`python benchmarks/attention.py --lengths {length} --shares {memory_share}`):",
        "turns_head": ("NOISE is seen for", "noise_turns", "limit"),
        "turns_columns": "threads: {threads}, {clock}: speed-up (of the limit)",
        "model": "A training step of a Qwen3 of 2 layers, hidden size {hidden}, HSA on over HSA off "
        "(`python benchmarks/model_step.py`):",
        "model_head": ("tokens", "HSA off, ms", "HSA on, ms", "on / off"),
        "decode": "Greedy decoding with a full cache, HSA with eviction against plain transformers ({setting}; "
        "`python benchmarks/decode.py`); 2 to 20 % of the tokens GLOBAL or LANDMARK:",
        "decode_head": (
            "model",
            "tokens",
            "memory tokens",
            "plain, tokens/s",
            "HSA, tokens/s",
            "HSA / plain",
            "cache / plain",
        ),
        "decode_turns": "With `noise_turns`, turns as long as those of real trajectories, {share} of the tokens GLOBAL or LANDMARK "
        "({setting}; `python benchmarks/decode.py --turns {numbers} --shares {memory_share}`). The last column is what the step costs "
        "that begins a turn, with the drop of all NOISE of the oldest turn after it, beyond a usual step:",
        "decode_turns_head": (
            "model",
            "tokens",
            "noise_turns",
            "plain, tokens/s",
            "HSA, tokens/s",
            "HSA / plain",
            "cache / plain",
            "end of a turn, ms",
        ),
        "parameters": "{:.1f}M parameters",
        "data": "Preparing {samples} samples ({tokens} tokens) takes, against the processor time of plain LLaMA-Factory, "
        "**{typed:.2f}×** with the types of the data, **{turns:.2f}×** with turn numbers beside them, and {ruled:.2f}× where rules "
        "type parts of messages ({machine}; `python benchmarks/preprocessing.py`).",
        "sequence": "A training step over a whole trajectory (forward and backward of all its replies) of a Qwen3 of {layers} layers, "
        "hidden size {hidden_size}, vocabulary of {vocabulary}, float32 ({setting}; `python benchmarks/one_sequence.py`). The "
        "trajectories have the shape of real ones (`embodied`: two real ones of the household, 8 and 18 images): system "
        "prompt and task GLOBAL, one reply in six LANDMARK, all other replies and all observations NOISE. In the third way each reply is a "
        "sample of its own, in which of NOISE observations the last {kept} are whole and the older ones cut to a line. The same "
        "tokens are trained in all three:",
        "sequence_head": (
            "trajectory",
            "way",
            "tokens through the model",
            "tokens in sight of a trained one",
            "s a step",
            "time / first way",
            "memory of the step, MiB",
        ),
        "trajectory": "{name}{messages} messages, {tokens} tokens",
        "no_gpu": "On a GPU: not measured yet. `python benchmarks/gpu.py` measures it.",
        "gpu": "Attention on {device}, torch {torch}: bfloat16, forward and backward, batch of 1, the `{method}` backend "
        "(`python benchmarks/gpu.py`): how many times faster than causal flash attention without HSA; in brackets the limit.",
        "gpu_head": ("tokens", "head size", "causal flash, ms", "causal, torch's choice, ms", "plan, ms"),
        "gpu_steps": "Training steps on {device} with checkpointing, forward and backward, batch of 1, loss of up to 2,048 tokens, "
        "random weights in bfloat16; 5% GLOBAL and LANDMARK; time over plain:",
        "gpu_steps_head": ("model", "tokens", "plain, s", "NOISE in a window of 50", "`noise_turns: 1`"),
        "gpu_turns": "5%, turns {}",
    },
    "docs/benchmarks_zh.md": {
        "language": 1,
        "plots": (
            "训练步的耗时与内存随长度的变化",
            "注意力的加速比与内存随长度的变化",
            "解码速度与缓存大小随长度的变化",
            "整条序列训练与逐回复训练的 token 数、耗时与内存",
        ),
        "setting": "{machine}，线程数 {threads}，{clock}",
        "clocks": {"wall": "实际时间", "cpu": "处理器时间"},
        "step": "微型 Qwen3 的一个 LLaMA-Factory SFT 训练步，批大小 1，单 CPU 线程（{machine}；"
        "`python benchmarks/sft_step.py`）：",
        "head": ("token 数", "方式", "每步毫秒", "耗时 / 原版", "旧 fork / 本行", "训练步内存，MiB"),
        "attention": "注意力前向 + 反向，float32，批大小 1，{heads} 个 {head_size} 维头，{kv_heads} 个 key/value 头（{setting}；"
        "`python benchmarks/attention.py`）：相对不用 HSA 的因果 `scaled_dot_product_attention` 快多少倍，按 GLOBAL 与 "
        "LANDMARK token 的占比；括号内是理论上限，即因果对数 / 可见对数。各类型的 token 逐个打散，是最不利的排布：",
        "attention_head": ("token 数", "因果注意力，毫秒", "额外内存，MiB（因果）"),
        "turns": "NOISE 按轮次可见时，一个 key 会在数百个 token 内可见，可见对更多，上限随之变低。{tokens} 个 token，"
        "其中 {share} 是 GLOBAL 或 LANDMARK，逐个打散（{machine}；"
        "`python benchmarks/attention.py --lengths {length} --shares {memory_share}`）：",
        "turns_head": ("NOISE 的可见范围", "noise_turns", "上限"),
        "turns_columns": "线程数 {threads}，{clock}：加速比（占上限）",
        "model": "2 层 Qwen3（hidden size {hidden}）的一个训练步，开启 HSA 与关闭 HSA 之比（`python benchmarks/model_step.py`）：",
        "model_head": ("token 数", "关闭，毫秒", "开启，毫秒", "开 / 关"),
        "decode": "缓存已满时的贪心解码，带逐出的 HSA 与原版 transformers 之比（{setting}；`python benchmarks/decode.py`）；"
        "2 % 到 20 % 的 token 是 GLOBAL 或 LANDMARK：",
        "decode_head": (
            "模型",
            "token 数",
            "记忆 token",
            "原版，token/s",
            "HSA，token/s",
            "HSA / 原版",
            "缓存 / 原版",
        ),
        "decode_turns": "使用 `noise_turns`，轮次长度取自真实轨迹，{share} 的 token 是 GLOBAL 或 LANDMARK（{setting}；"
        "`python benchmarks/decode.py --turns {numbers} --shares {memory_share}`）。最后一列是新一轮开始的那一步（随后丢弃最旧一轮的全部 "
        "NOISE）比平常一步多花的时间：",
        "decode_turns_head": (
            "模型",
            "token 数",
            "noise_turns",
            "原版，token/s",
            "HSA，token/s",
            "HSA / 原版",
            "缓存 / 原版",
            "一轮结束，毫秒",
        ),
        "parameters": "{:.1f}M 参数",
        "data": "预处理 {samples} 条样本（{tokens} 个 token），处理器时间与原版 LLaMA-Factory 之比：带数据自身的语义类型 **{typed:.2f}**，"
        "再加轮次编号 **{turns:.2f}**，用规则给消息的各部分定类型 {ruled:.2f}（{machine}；`python benchmarks/preprocessing.py`）。",
        "sequence": "对一整条轨迹的一个训练步（全部回复的前向 + 反向）：{layers} 层 Qwen3，hidden size {hidden_size}，词表 {vocabulary}，"
        "float32（{setting}；`python benchmarks/one_sequence.py`）。轨迹的形状与真实轨迹相同（`embodied` 是两条真实的家务轨迹，含 8 张和 18 张"
        "图像）：系统提示与任务为 GLOBAL，每六个回复有一个 LANDMARK，其余回复和全部观察为 NOISE。第三种方式中每个回复自成一个样本，其中 NOISE 观察只"
        "保留最后 {kept} 个全文，更早的截成一行。三种方式训练的是同样的 token：",
        "sequence_head": (
            "轨迹",
            "方式",
            "经过模型的 token",
            "被训练 token 平均可见的 token",
            "每步秒数",
            "耗时 / 第一种",
            "训练步内存，MiB",
        ),
        "trajectory": "{name}{messages} 条消息，{tokens} 个 token",
        "no_gpu": "GPU 尚未测量；用 `python benchmarks/gpu.py` 测量。",
        "gpu": "{device} 上的注意力，torch {torch}：bfloat16，前向 + 反向，批大小 1，`{method}` 后端（`python benchmarks/gpu.py`）："
        "相对不用 HSA 的因果 flash attention 快多少倍；括号内是理论上限。",
        "gpu_head": ("token 数", "头维度", "因果 flash，毫秒", "因果（torch 自选内核），毫秒", "plan，毫秒"),
        "gpu_steps": "{device} 上的训练步：启用梯度检查点，前向 + 反向，批大小 1，最多 2,048 个 token 计损失，bfloat16 随机权重，"
        "GLOBAL 与 LANDMARK 占 5%；耗时与不用 HSA 之比：",
        "gpu_steps_head": ("模型", "token 数", "不用 HSA，秒", "NOISE 窗口 50", "`noise_turns: 1`"),
        "gpu_turns": "5%，turns {}",
    },
}

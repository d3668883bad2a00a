"""Training: LLaMA-Factory's tuner and, one file a stage, what each stage needs of seams."""

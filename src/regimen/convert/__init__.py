"""From rollouts to training rows: SFT, DPO and GRPO sets with a sidecar, a split by task, a ledger and a manifest."""

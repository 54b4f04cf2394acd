# pyright: basic
# safetensors and torch are typed too loosely for strict checking.
"""A trained adapter at a lower rank: the best approximation of each B·A by singular values.

Learning at a high rank and cutting afterwards gives a small file that has learned like a big one,
as long as the update itself is close to low rank; evaluate the result like any other adapter.
"""

import json
from pathlib import Path


def truncate(source: Path, target: Path, rank: int, *, device: str = "cpu") -> float:
    """Write the adapter in `source` at `rank` into `target`; returns the share of energy kept."""
    import torch
    from safetensors.torch import load_file, save_file

    config = json.loads((source / "adapter_config.json").read_text())
    weights = load_file(source / "adapter_model.safetensors")
    root = config["r"] ** 0.5 if config.get("use_rslora") else config["r"]
    scale = config["lora_alpha"] / root
    result = {}
    kept = total = 0.0
    for name, value in weights.items():
        if ".lora_A." not in name:
            continue
        a = value.to(device, torch.float32)
        b = weights[name.replace(".lora_A.", ".lora_B.")].to(device, torch.float32) * scale
        q_b, r_b = torch.linalg.qr(b)
        q_a, r_a = torch.linalg.qr(a.T)
        u, s, v = torch.linalg.svd(r_b @ r_a.T)
        kept += float((s[:rank] ** 2).sum())
        total += float((s**2).sum())
        half = s[:rank].sqrt()
        new_a = half[:, None] * (q_a @ v[:rank].T).T
        new_b = (q_b @ u[:, :rank]) * half
        result[name] = new_a.to("cpu", value.dtype).contiguous()
        result[name.replace(".lora_A.", ".lora_B.")] = new_b.to("cpu", value.dtype).contiguous()
    target.mkdir(parents=True, exist_ok=True)
    save_file(result, target / "adapter_model.safetensors", metadata={"format": "pt"})
    config |= {"r": rank, "lora_alpha": rank, "use_rslora": False}
    (target / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    return kept / total

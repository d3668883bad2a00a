"""How far attention may be from the exact one when a fused kernel computes it in a low precision."""

import torch

from hsa_factory.attention import LayerRules, reference_attention


SLACK = 1.1  # what products of two roundings add, and float32's own
RESULTS = ("output", "query", "key", "value")


def bounds(tensors, plan, config, dtype):
    """Return exact results for inputs rounded to a dtype, and how far each number of a kernel's may be from them.

    Legend: u unit roundoff of the dtype, S logits, P probabilities, O output, dO its gradient, |·| of each number. The kernel
    multiplies in float32 what it has rounded to the dtype: P before P·V and Pᵀ·dO, dS before dS·K and dSᵀ·Q, and each result. So

    - P: u of itself; and where a backend rounds the bias b, too (`dense` does), ε = u·(|b| + Σ P|b|) of itself more.
    - O: what P has, times |V|, and u·|O| for the result.
    - dV: what P has, transposed, times |dO|, and u·|dV|.
    - dS = P∘(dO·Vᵀ − δ), δ = Σ dO·O of the O that it has written: (u + ε)·|dS|, and P times the error of O, Σ |dO|·(error of O).
    - dQ = dS·K·scale, dK = dSᵀ·Q·scale: what dS has, times |K| or |Q|, and u·|dQ|, u·|dK|.
    - dK and dV are sums over the query heads of a group, each of which may be rounded before: u of each.
    """
    unit = torch.finfo(dtype).eps / 2
    query, key, value, upstream = (tensor.to(dtype).float() for tensor in tensors)
    leaves = [tensor.clone().requires_grad_() for tensor in (query, key, value)]
    rules = LayerRules.of(config)
    output, weights = reference_attention(*leaves, plan, rules)
    output.backward(upstream)
    exact = [output.detach(), *(leaf.grad for leaf in leaves)]

    query, key, value = plan.zero_padding(query, key, value)
    groups, scale = query.shape[1] // key.shape[1], query.shape[-1] ** -0.5
    keys, values = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    weights = weights.detach()
    bias = plan.dense_bias(torch.float32, rules)
    bias = bias.masked_fill(bias.isinf(), 0).abs()
    of_bias = unit * (bias + (weights * bias).sum(-1, keepdim=True))
    of_weights = (unit + of_bias) * weights
    of_output = of_weights @ values.abs() + unit * exact[0].abs()
    delta = (upstream * exact[0]).sum(-1, keepdim=True)
    grad_logits = weights * (upstream @ values.transpose(2, 3) - delta)
    of_logits = (unit + of_bias) * grad_logits.abs() + weights * (upstream.abs() * of_output).sum(-1, keepdim=True)
    of_groups = [
        unit * by_key_head((scale * (grad_logits.transpose(2, 3) @ query)).abs(), groups),
        unit * by_key_head((weights.transpose(2, 3) @ upstream).abs(), groups),
    ]
    errors = [
        of_output,
        scale * (of_logits @ keys.abs()) + unit * exact[1].abs(),
        scale * by_key_head(of_logits.transpose(2, 3) @ query.abs(), groups) + unit * exact[2].abs() + of_groups[0],
        by_key_head(of_weights.transpose(2, 3) @ upstream.abs(), groups) + unit * exact[3].abs() + of_groups[1],
    ]
    return exact, [SLACK * error for error in errors]


def by_key_head(tensor, groups):
    """Add up what the query heads of each key/value head say: (B, H, L, D) to (B, Hkv, L, D)."""
    return tensor.unflatten(1, (-1, groups)).sum(2)


def fused(tensors, plan, config, dtype):
    """Compute attention and its gradients as such a kernel does, in plain torch."""
    query, key, value = plan.zero_padding(*(tensor.to(dtype).float() for tensor in tensors[:3]))
    upstream = tensors[3].to(dtype).float()
    groups, scale = query.shape[1] // key.shape[1], query.shape[-1] ** -0.5
    keys, values = (tensor.repeat_interleave(groups, dim=1) for tensor in (key, value))
    round_ = lambda tensor: tensor.to(dtype).float()
    logits = query @ keys.transpose(2, 3) * scale + plan.dense_bias(torch.float32, LayerRules.of(config))
    powers = (logits - logits.amax(-1, keepdim=True)).exp()
    is_real = (plan.document_ids != 0)[:, None, :, None]
    output = (round_(powers) @ values / powers.sum(-1, keepdim=True) * is_real).to(dtype)
    upstream = upstream * is_real
    weights = logits.softmax(-1)
    delta = (upstream * output.float()).sum(-1, keepdim=True)
    grad_logits = round_(weights * (upstream @ values.transpose(2, 3) - delta))
    grads = (
        scale * (grad_logits @ keys),
        scale * by_key_head(grad_logits.transpose(2, 3) @ query, groups),
        by_key_head(round_(weights).transpose(2, 3) @ upstream, groups),
    )
    return [output, *((grad * is_real).to(dtype) for grad in grads)]

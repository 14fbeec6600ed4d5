"""Wrong answers to the exercises of the lessons: for each lesson a list per exercise. Every check must reject them."""

WRONG: dict[str, list[list[str]]] = {
    "00_model": [
        [
            "def softmax(z): return [math.exp(s) / 2 for s in z]",
            "def softmax(z): return [s / sum(z) if sum(z) else 1 / len(z) for s in z]",
            "def softmax(z): return [1 / len(z)] * len(z)",
        ],
        [
            "def continued(text, count): return text",
            "def continued(text, count): return text + top(text)",
            "def continued(text, count): return text + top(text) * count",
        ],
    ],
    "01_bigram": [
        [
            "def loss_of(p): return sum(-math.log(x) for x in p)",
            "def loss_of(p): return -math.log(sum(p) / len(p))",
            "def loss_of(p): return sum(-math.log2(x) for x in p) / len(p)",
        ],
        [
            "def perplexity(loss): return 2**loss\ndef bits(loss): return loss / math.log(2)",
            "def perplexity(loss): return math.exp(loss)\ndef bits(loss): return loss * math.log(2)",
        ],
        [
            "def trigram(words, a, b): return {'bell': 1.0}",
            "def trigram(words, a, b): return {y: 1.0 for x, y in pairwise(words) if x == b}",
        ],
    ],
    "02_tokens": [
        [
            "def byte_count(text): return len(text)",
            "def byte_count(text): return sum(1 + (ord(c) > 128) + (ord(c) >= 2048) + (ord(c) >= 65536) for c in text)",
            "def byte_count(text): return sum(1 + (ord(c) >= 128) + (ord(c) >= 2048) for c in text)",
        ],
        [
            "def most_alike(matrix, row): return row",
            "def most_alike(matrix, row):\n"
            "    s = matrix @ matrix[row]\n    s[row] = -torch.inf\n    return int(s.argmax())",
        ],
    ],
    "03_attention": [
        [
            "def causal(n): return torch.ones(n, n, dtype=torch.bool).triu()",
            "def causal(n): return torch.ones(n, n, dtype=torch.bool).tril(-1)",
            "def causal(n): return torch.ones(n, n, dtype=torch.bool)",
        ],
        [
            "def masked_attention(q, k, v): return attend(q, k, v)",
            "def masked_attention(q, k, v): return (q @ k.T).masked_fill(~causal(len(q)), -math.inf).softmax(-1) @ v",
            "def masked_attention(q, k, v): return (q @ k.T / math.sqrt(8)).softmax(-1).tril() @ v",
        ],
        [
            "def cache_bytes(config, tokens): return 2 * tokens * config.layers * config.kv_heads * config.head_dim",
            "def cache_bytes(config, tokens): return 4 * tokens * config.layers * config.heads * config.head_dim",
        ],
    ],
    "04_position": [
        [
            "def slow_pairs(base, head_dim, context): return head_dim // 2",
            "def slow_pairs(base, head_dim, context):\n"
            "    return sum(context * base ** (-j / head_dim) < 1 for j in range(0, head_dim, 2))",
            "def slow_pairs(base, head_dim, context):\n"
            "    return sum(context * base ** (-j / head_dim) < 2 * math.pi for j in range(head_dim // 2))",
        ],
        [
            "def turn(x, position, theta): return x",
            "def turn(x, position, theta):\n"
            "    (a, b), angle = x.view(-1, 2).T, -position * theta\n"
            "    c, s = angle.cos(), angle.sin()\n"
            "    return torch.stack((a * c - b * s, a * s + b * c), -1).flatten()",
            "def turn(x, position, theta):\n"
            "    (a, b), angle = x.view(2, -1), position * theta\n"
            "    return torch.cat((a * angle.cos() - b * angle.sin(), a * angle.sin() + b * angle.cos()))",
        ],
    ],
    "05_block": [
        [
            "def norm(x, gain, eps): return x / x.norm(dim=-1, keepdim=True) * gain",
            "def norm(x, gain, eps): return x / x.square().mean(-1, keepdim=True).sqrt() * gain",
            "def norm(x, gain, eps): return x / (x.square().mean(-1, keepdim=True) + eps).sqrt()",
            "def norm(x, gain, eps): return x / (x.square().mean() + eps).sqrt() * gain",
        ],
        [
            "def feed_forward_of(x, G, U, D): return (F.silu(x @ U.T) * (x @ G.T)) @ D.T",
            "def feed_forward_of(x, G, U, D): return F.silu((x @ G.T) * (x @ U.T)) @ D.T",
        ],
        [
            "def silenced(b): return b",
            "def silenced(b): return b._replace(attention=b.attention._replace(output=0 * b.attention.output))",
            "def silenced(b):\n"
            "    zero = lambda t: type(t)(*(a if a is None else 0 * a for a in t))\n"
            "    return b._replace(attention=zero(b.attention), feed_forward=zero(b.feed_forward))",
        ],
    ],
    "06_llama": [
        [
            "def my_attention(x, w, config): return x",
            "def my_attention(x, w, config):\n"  # without the mask
            "    q = turn(heads_of(x @ w.query.T, config.heads), config)\n"
            "    k = turn(heads_of(x @ w.key.T, config.kv_heads), config)\n"
            "    v = heads_of(x @ w.value.T, config.kv_heads)\n"
            "    k, v = (t.repeat_interleave(config.heads // config.kv_heads, 0) for t in (k, v))\n"
            "    p = (q @ k.mT / config.head_dim**0.5).softmax(-1)\n"
            "    return (p @ v).transpose(0, 1).flatten(-2) @ w.output.T",
            "def my_attention(x, w, config):\n"  # without RoPE
            "    q, k = heads_of(x @ w.query.T, config.heads), heads_of(x @ w.key.T, config.kv_heads)\n"
            "    v = heads_of(x @ w.value.T, config.kv_heads)\n"
            "    k, v = (t.repeat_interleave(config.heads // config.kv_heads, 0) for t in (k, v))\n"
            "    later = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)\n"
            "    p = (q @ k.mT / config.head_dim**0.5).masked_fill(later, -torch.inf).softmax(-1)\n"
            "    return (p @ v).transpose(0, 1).flatten(-2) @ w.output.T",
            *(
                "def my_attention(x, w, config):\n"  # key heads not repeated, or in the wrong order
                "    q = turn(heads_of(x @ w.query.T, config.heads), config)\n"
                "    k = turn(heads_of(x @ w.key.T, config.kv_heads), config)\n"
                f"    k, v = (t{repeated} for t in (k, heads_of(x @ w.value.T, config.kv_heads)))\n"
                "    later = torch.ones(len(x), len(x), dtype=torch.bool).triu(1)\n"
                "    p = (q @ k.mT / config.head_dim**0.5).masked_fill(later, -torch.inf).softmax(-1)\n"
                "    return (p @ v).transpose(0, 1).flatten(-2) @ w.output.T"
                for repeated in ("", ".repeat(config.heads // config.kv_heads, 1, 1)")
            ),
        ],
        [
            "def my_llama(ids, weights, config): return weights.embedding[ids] @ weights.embedding.T",
            "def my_llama(ids, weights, config):\n"  # without the feed-forward network
            "    x = weights.embedding[ids]\n"
            "    for w in weights.blocks:\n"
            "        x = x + my_attention(norm(x, w.attention_norm, config), w.attention, config)\n"
            "    output = weights.embedding if weights.output is None else weights.output\n"
            "    return norm(x, weights.norm, config) @ output.T",
        ],
    ],
    "07_training": [
        [
            "def numeric(f, w, h=1e-4): return (f(w + h) - f(w)) / h",
            "def numeric(f, w, h=1e-4): return (f(w + h) - f(w - h)) / h",
        ],
        [
            "def momentum_step(w, g, u, rate, beta): return w - rate * g, u",
            "def momentum_step(w, g, u, rate, beta): return w - rate * u, beta * u + g",
            "def momentum_step(w, g, u, rate, beta):\n    u = beta * u + (1 - beta) * g\n    return w - rate * u, u",
        ],
        [
            "def gradient_in_parts(weights, inputs, targets, parts):\n"
            "    for x, y in zip(inputs.chunk(parts), targets.chunk(parts)):\n"
            "        (loss_of(weights, x, y) / parts).backward()\n"
            "    return weights.embedding.grad",
            "def gradient_in_parts(weights, inputs, targets, parts):\n"
            "    for x, y in zip(inputs.chunk(parts), targets.chunk(parts)): loss_of(weights, x, y).backward()\n"
            "    return weights.embedding.grad",
        ],
    ],
    "08_writing": [
        [
            "def nucleus(p, share): return {i for i, q in enumerate(p) if q >= share}",
            "def nucleus(p, share): return set(range(len(p)))",
            "def nucleus(p, share):\n"
            "    kept, total = set(), 0.0\n"
            "    for i in sorted(range(len(p)), key=lambda i: -p[i]):\n"
            "        total += p[i]\n"
            "        if total > share: break\n"
            "        kept.add(i)\n"
            "    return kept",
        ],
        [
            "def read_again(n, count): return n * count\ndef read_once(n, count): return n + count - 1",
            "def read_again(n, count): return n * count + count * (count - 1) // 2\n"
            "def read_once(n, count): return n + count",
        ],
    ],
    "09_chat": [
        [
            "def masked(before, said): return before + said, before + said",
            "def masked(before, said): return (before + said)[:-1], (before + said)[1:]",
            "def masked(before, said): return (before + said)[:-1], ([-100] * len(before) + said)[:-1]",
        ],
        [
            "def turn_of(role, content): return tokenizer.encode(role + content)",
            "def turn_of(role, content):\n"
            "    s, e = tokenizer.special, tokenizer.encode\n"
            "    head = [s['<|start_header_id|>'], *e(role), s['<|end_header_id|>']]\n"
            "    return [*head, *e(content), s['<|eot_id|>']]",
            "def turn_of(role, content):\n"
            "    s, e = tokenizer.special, tokenizer.encode\n"
            "    head = [s['<|start_header_id|>'], *e(role), s['<|end_header_id|>']]\n"
            "    return [*head, *e('\\n\\n' + content)]",
        ],
    ],
    "10_jax": [
        ["def product(a, b): return vmap(jnp.dot, (None, 1))(a, b)", "def product(a, b): return a @ b + 1"],
        [
            "def slope(scores, target): return jax.nn.softmax(scores)",
            "def slope(scores, target): return -jax.nn.softmax(scores).at[target].add(-1.0)",
            "def slope(scores, target): return jax.nn.softmax(scores)[target] - 1.0",
        ],
    ],
    "11_checkpoint": [
        [
            "def place_of(row, head_dim): return row",
            "def place_of(row, head_dim): return row // 2 + (row % 2) * (head_dim // 2)",
            "def place_of(row, head_dim):\n"
            "    head, at = divmod(row, head_dim)\n"
            "    return head * head_dim + 2 * (at % (head_dim // 2)) + at // (head_dim // 2)",
        ],
        [
            "def bin_size(config): return 28 + 4 * parameter_count(config)",
            "def bin_size(config): return 28 + 4 * parameter_count(config) + 4 * config.context * config.head_dim // 2",
        ],
        [
            "def score_at(distance, wrong): return (q.T @ k).item()",
            "def score_at(distance, wrong): return (turned(q, distance) @ turned(k, 0)).item()",
            "def score_at(distance, wrong):\n"
            "    a, b = (to_halves(x, 1) for x in (q, k)) if wrong else (q, k)\n"
            "    return (turned(a, 0) @ turned(b, distance)).item()",
        ],
    ],
    "12_speed": [
        [
            "def most(parameters, bits, gigabytes): return gigabytes * 1e9 / (parameters * bits)",
            "def most(parameters, bits, gigabytes): return gigabytes * 2**30 / (parameters * bits / 8)",
        ],
        [
            "def quantise(numbers, bits): return numbers.round(), 1.0",
            "def quantise(numbers, bits):\n"
            "    scale = numbers.abs().max().item() / 2 ** (bits - 1)\n"
            "    return (numbers / (scale or 1)).round(), scale",
            "def quantise(numbers, bits):\n"
            "    scale = numbers.abs().max().item() / (2 ** (bits - 1) - 1)\n"
            "    return (numbers / scale).round(), scale",
            "def quantise(numbers, bits):\n"
            "    scale = numbers.max().item() / (2 ** (bits - 1) - 1)\n"
            "    return (numbers / (scale or 1)).round(), scale",
        ],
        [
            "def as_large(c): return parameter_count(c) / (c.layers * c.kv_heads * c.head_dim)",
            "def as_large(c): return parameter_count(c) / (2 * c.layers * c.heads * c.head_dim)",
        ],
    ],
    "13_look": [
        [
            "def without_feed_forward(layer): return chance(looked)",
            "def without_feed_forward(layer): return chance(trace(model, ids, change=ablate(layer)))",
            "def without_feed_forward(layer): return chance(trace(model, ids, change=ablate(layer, part='attention')))",
        ],
        [
            "def uniform(p): return torch.full_like(p, 1 / p.shape[-1])",
            "def uniform(p): return torch.ones_like(p).tril() / p.shape[-1]",
            "def uniform(p): return p",
        ],
    ],
    "14_rung": [
        [
            "def peeks(score, weights): return False",
            "def peeks(score, weights): return True",
            "def peeks(score, weights):\n"
            "    a, b = torch.arange(10)[None], torch.arange(1, 11)[None]\n"
            "    return not score(a, weights, config)[:, :-1].equal(score(b, weights, config)[:, :-1])",
            "def peeks(score, weights):\n"  # compares only the first position
            "    a, b = torch.arange(10)[None], torch.tensor([[*range(9), 11]])\n"
            "    return not score(a, weights, config)[:, 0].equal(score(b, weights, config)[:, 0])",
        ],
        [
            "def logits_step(tokens, weights, config): return weights.embedding[tokens].tanh() @ weights.output.T",
            "def logits_step(tokens, weights, config):\n"
            "    h, states = torch.zeros(len(tokens), config.dim), []\n"
            "    for column in tokens.T:\n"
            "        h = (weights.fade.sigmoid() * h + weights.embedding[column]).tanh()\n"
            "        states.append(h)\n"
            "    return torch.stack(states, 1) @ weights.output.T",
        ],
    ],
}

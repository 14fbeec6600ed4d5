"""The page's server, on loopback, and the protocol between it and the page.

A *reading* is one forward pass: a model, a text and a list of changes. Its id is a hash of the three, so that every GET
below answers with the same bytes for ever (`Cache-Control: immutable`, an ETag). A page that was exported as one file
has the same answers in a map from URL to answer, so the page asks for both in the same way:

- A URL is its path, and its parameters sorted by name and written as `encodeURIComponent` writes them, none of them at
  its default: `/look/0f3a/attention?head=3&layer=2`. That string is the key of the export's map.
- The export is one element `<script type="application/json" id="answers">` with
  `{"answers": {URL: {"type": content type, "headers": {name: text}, "body": base64}}, "left_out": [sentence, …]}`.
  A URL that is not there was left out for its size, and the page says so. There is no POST in an export.

Positions count tokens from 0 and may be negative, from the end. Layers count from 0. Numbers that are not finite are
null in JSON. Every error is JSON, `{"error": one line}`, with status 400 (bad request), 403 (foreign Host or Origin),
404 (no such thing), 413 (body too large) or 500.

**JSON**

GET /look                               what there is to look at
    {"models": [{"name", "parameters", "config": {…}, "has_tokenizer", "snapshot": step or null}, …],
     "first": id of the first reading, "tour": bool, "export": bool}
    models[0] is the model; then the one it is compared with, and the snapshots of its training run, by step.
POST /look/read  {"text": …} or {"ids": […]}, and "model": 0
                                        -> {"id"}; the text is encoded with BOS in front, as `llucid generate` does
POST /look/{id}/edit  {"changes": [change, …]}
                                        -> {"id"} of the same text with these changes (and not those of {id})
    change is one of {"kind": "ablate", "layer", "head": n, or "part": "attention" or "feed_forward", or neither},
    {"kind": "scale", "name", "factor"}, {"kind": "patch", "name", "from": id, "position": n or null},
    {"kind": "zero_frequency", "pair"}
GET /look/{id}                          the reading
    {"id", "model": 0, "parent": id without changes, or null, "changes": […], "text": or null,
     "tokens": [{"id", "piece", "surprise", "rank", "entropy"}, …]}
    surprise is -ln p of the token given those before it, in nats, rank 0 the likeliest; null for the first token.
    entropy is that of the distribution of what follows the token, in nats.
GET /look/{id}/next?position=-1&top=200     what may follow this position, the likeliest first
    {"tokens": [{"id", "piece", "logit", "p"}, …], "log_sum": ln Σ exp(logit) over all, "vocab": n}
    p is at temperature 1; for another, or top-k, top-p and min-p, the page works from the logits.
GET /look/source                        llama.py
    {"file", "text", "sites": [{"function", "kind", "text", "spans": [[line, column, end line, end column], …]}, …]}
    lines count from 1, columns (of characters) from 0, the end is exclusive. kind is "variable" (spans: the name, and
    the expression where it is the name's own), "parameter", "result" (of the function, spans: the return's expression),
    "expression", "use" (of a variable or parameter: what it holds there), or "weight".
GET /look/{id}/names                    every value, in the order in which they were computed
    {"values": [{"name", "shape", "axes", "site", "layer": n or null}, …],
     "seen": [[site, layer or null, value], …]}
    axes has a name or null for each axis. `seen` says for every site what stood there, as an index into values; a site
    that was passed several times in a layer (a norm) is there several times. The site of a weight, such as
    `weights.gate`, gives the weight's path: [site, layer, "blocks.3.feed_forward.gate"].
GET /look/{id}/summaries?layer=3        of every value of this layer; without layer, of those outside the blocks
    {name: {"min", "max", "mean", "std", "histogram": [20 counts from min to max]}, …}
GET /look/{id}/lens?top=5               the logit lens: each stream through the last norm and the output matrix
    {"ids": [layers+1][seq][top], "p": the same, "pieces": {id: piece}}
GET /look/{id}/stream                   norms of vectors, each [layers][seq], but stream [layers+1][seq]
    {"stream", "attention", "feed_forward"}
GET /look/{id}/parts?position=-1&token=123  where a logit comes from; token, if not given, is the likeliest there
    {"token", "piece", "logit", "parts": [{"name", "layer": n or null, "head": n or null, "value"}, …]}
    the parts, 1 + layers · (heads + 1) of them, add up to the logit.
GET /look/{id}/heads                    scores of heads, each [layers][heads], or null if the text is too short
    {"previous", "first", "same", "induction", "copying"}
GET /look/{id}/clocks?head=3&key=4&layer=2&position=9
                                        a score before the softmax as a sum over RoPE's pairs
    {"score", "pairs": [{"frequency": radians per position, "value"}, …]}
GET /look/{id}/compare?with=id          two readings of the same tokens, token by token
    {"kl": [seq] of the other's next tokens from these, "cosine": [layers+1][seq] of the streams or null}

**Binary**: numbers in C order, little-endian; `x-shape` and `x-axes` are JSON lists, `x-dtype` is u8, f16 or f32.
Of u8, a number is `x-offset` + byte · `x-scale`. Where an axis was longer than `max`, each number is the one of the
largest magnitude in a block of `x-pool` (a JSON list, one length an axis).

GET /look/{id}/value?as=f32&max=512&name=blocks.2.attention.q&slice=0,:,3
    a value by its name; slice picks by index or keeps (:) each leading axis. Complex numbers gain a last axis of 2.
GET /look/{id}/weight?as=f32&max=512&name=blocks.2.attention.query
GET /look/{id}/attention?as=u8&max=64               [layers heads seq seq], for the wall
GET /look/{id}/attention?as=u8&head=3&layer=2&max=1024  [seq seq], one head

Everything else is a file of page/: GET / is page/index.html.
"""

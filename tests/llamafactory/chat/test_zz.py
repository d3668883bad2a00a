import torch
from chatting import *


def test_plain(lf, tmp_path):
    from safetensors.torch import save_file

    d = lf.model_dir()
    import shutil

    m = tmp_path / "m"
    shutil.copytree(d, m)
    torch.manual_seed(0)
    save_file(
        {"v_head.summary.weight": torch.randn(1, 64), "v_head.summary.bias": torch.zeros(1)},
        m / "value_head.safetensors",
    )
    import llamafactory.api.app as app
    from fastapi.testclient import TestClient

    out = open("/tmp/w/x.txt", "w")
    cm = ChatModel({"model_name_or_path": str(m), "template": "qwen3_nothink", "stage": "rm"})
    try:
        print(cm.get_scores(["<m0> hi", "<m1><m2> hello you"]), file=out)
    except Exception as e:
        print(repr(e)[:300], file=out)
    try:
        cm.chat([{"role": "user", "content": "x"}])
    except Exception as e:
        print("chat", repr(e)[:300], file=out)
    with TestClient(app.create_app(cm), raise_server_exceptions=False) as c:
        r = c.post("/v1/score/evaluation", json={"model": "x", "messages": ["<m0> hi", "<m1><m2> hello you"]})
        print(r.status_code, r.text[:300], file=out)
        r = c.post("/v1/chat/completions", json={"model": "x", "messages": [{"role": "user", "content": "x"}]})
        print(r.status_code, r.text[:300], file=out)

from medmamba_jax.data.naming import listed


def test_what_is_not_listed_is_counted():
    assert listed(["a", "b"]) == "a; b"
    assert listed(list("abcdefg")) == "a; b; c; d; e; and 2 more"
    assert listed(list("abcdefg"), between=" = ") == "a = b = c = d = e = and 2 more"
    assert listed(list("abcdef"), 1500) == "a; b; c; d; e; and 1495 more"

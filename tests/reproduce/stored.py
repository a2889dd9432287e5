"""What is stored of a system beside what its experiment says today."""

from unwrite import catalog


def same_kinds(claim) -> bool:
    """Whether every stored statement that the claim makes too has its kind, and the headline is the same one."""
    kinds = {check.text: check.kind for check in claim.checks}
    stored = {check["text"]: check["kind"] for check in catalog.system(claim.slug).result["checks"]}
    common = [text for text in stored if text in kinds]
    first = next(check.text for check in claim.checks if check.kind == "claim")
    assert common
    assert {text: stored[text] for text in common} == {text: kinds[text] for text in common}
    return next(text for text in stored if stored[text] == "claim") == first

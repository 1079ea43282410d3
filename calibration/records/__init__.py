"""The records that stages hand to each other: what was measured (profile) and what was decided (plan)."""

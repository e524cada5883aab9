"""Making base dirs agree."""

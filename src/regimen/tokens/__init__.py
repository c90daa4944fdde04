"""From messages and sampled ids to masked token forests. numpy only: no tensor library here."""

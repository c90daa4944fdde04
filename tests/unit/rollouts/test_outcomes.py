from regimen.rollouts.outcomes import Outcome


def test_only_finished_and_truncated_episodes_speak_about_the_model():
    assert [outcome for outcome in Outcome if outcome.is_scored] == [Outcome.OK, Outcome.TRUNCATED]

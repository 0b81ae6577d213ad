"""A plain exact count of what limits should have said: a sum over the last minute for every question, made afterwards."""

MINUTE = 60_000_000


class Oracle:
    """Told what happened, in the order in which it did."""

    def __init__(self, window=MINUTE):
        self.window = window
        self.happened = []
        """(when, "take" or "give", hold, subjects, estimate, whether it was let in or how much it used)"""

    def judge(self):
        """Return the wrong answers, how many were let in, and how many were refused."""
        requests, tokens, running = [], [], {}
        wrong, let_in, refused = [], 0, 0
        for at, what, hold, subjects, estimate, outcome in self.happened:
            if what == "give":
                running.pop(hold)
                for entry in tokens:
                    if entry[2] == hold:
                        entry[3] = min(estimate, outcome)
                if outcome > estimate:
                    tokens += [[at, s.id, f"{hold}, over", outcome - estimate] for s in subjects]
                continue
            requests = [entry for entry in requests if entry[0] > at - self.window]
            tokens = [entry for entry in tokens if entry[0] > at - self.window]
            room = True
            for subject in subjects:
                limits = subject.limits
                asked = sum(name == subject.id for _, name in requests)
                spent = sum(amount for _, name, _, amount in tokens if name == subject.id)
                under_way = sum(subject.id in names for names in running.values())
                room &= asked < (limits.requests_per_minute or 10**9)
                room &= spent + estimate <= (limits.tokens_per_minute or 10**9)
                room &= under_way < (limits.concurrency or 10**9)
            if room != outcome:
                wrong.append((at, hold))
            let_in, refused = let_in + outcome, refused + (not outcome)
            if outcome:
                running[hold] = {subject.id for subject in subjects}
                requests += [(at, subject.id) for subject in subjects]
                tokens += [[at, subject.id, hold, estimate] for subject in subjects]
        return wrong, let_in, refused

"""Input and output guards: PII, prompt injection, and the policies that say what to do about them."""

"""Operations on whole model files, in bounded memory: open, plan, jobs, verify, report."""

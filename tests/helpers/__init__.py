"""What several tests use.

paths               where the repository and the reference files are
small_detector      a small detector on any backbone of timm
seeded_run          the OUTPUT_DIR of a training that never was: seeded weights that detect something
standin_weights     deterministic stand-in weights for the published detectors
fake_hub            weights from a seed, in a Hugging Face cache folder as the hub fills it
detections          made-up detections for the sample data
damaged_files       files that are damaged or unusual, made byte by byte
chromium            a real browser for the HTML pages
kill_and_resume     a program: trains without a stop, and again with kills and resumes
two_processes       a program: what each of two processes does in the tests of several processes
"""

"""What several tests use.

paths               where the repository and the reference files are
devices             the devices that tests run on, and how near to one another their results are
catalogs            Detectron2's global catalogs, left as they were
installed           the Detectron2 that is installed: the patched wheel of 0.6, or its main
small_detector      a small detector on any backbone of timm
small_pretraining   a pretraining of seconds on a few images of the sample objects
seeded_run          the OUTPUT_DIR of a training that never was: seeded weights that detect
zoo_model           Detectron2's zoo: its YAML files, a model of one made small, images for it
fake_hub            weights from a seed, in a Hugging Face cache folder as the hub fills it
detections          made-up detections for the sample data
colour_finder       a predictor without a network: what it finds follows from the pixels
clips               little videos
damaged_files       files that are damaged or unusual, made byte by byte
fonts               fonts made by a test, and nothing else installed
chromium            a real browser for the HTML pages
report_page         the data that a page of a report holds
quick_training      trainings without what takes a second of each and is the same in all
others              stand-ins for other Detectron2 projects: their names and keys
host_program        a program: imports the package, and prints what that has changed around it
kill_and_resume     a program: trains without a stop, and again with kills and resumes
two_processes       a program: what each of two processes does in the tests of several
clone               the commands of the pages, and folders in which they run in seconds
warm_python         a python for command lines that has imported torch and the package already

data/bad_input      a little data set, ways of making something about it bad, what must come of it
data/coco_content   COCO-format content with everything in it that Detectron2 reads
data/starts         the start of a training, as far as its data set is concerned
data/http_server    a server on this machine that fails on demand
data/coco_files     small annotation files, registered and evaluated
data/fuzzing        examples at random, the same in every run
data/layouts        small data in the layouts of COCO, LVIS, VOC, Cityscapes and ADE20k
data/label_files    data sets in the formats of other tools
data/loaders        a training loader of made-up records

models/exporting    config, names and pictures for exported files
models/optimized    detectors to be optimized, and what they must find afterwards

runs/programs           train_net.py and the tools as functions of this process
runs/sample_run         a small run of the sample config
runs/resumable_run      a small training that is stopped and goes on
runs/scripted_training  a small training whose evaluations are scripted
runs/switched_training  a short training with the switches for speed
runs/without_rsb_d2     a process that has Detectron2 and not this project, and runs packages
runs/lazy_script        a program: the steps of Detectron2's script for LazyConfigs

weights/bad_weights      weights that are damaged, of something else, or meant to run code
weights/weight_files     one network's weights in the files of every format
weights/openmmlab        stand-ins for the published detectors, and what they computed
weights/standin_weights  deterministic stand-in weights for the published detectors
"""

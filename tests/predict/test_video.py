"""tools/predict.py on videos: clips, detections by frame, damaged frames."""

import json
import os

import cv2
import numpy as np
import pytest
from detectron2.structures import Boxes, Instances
from pycocotools.coco import COCO

from rsb_d2 import UserError
from rsb_d2.data.class_names import ClassNames
from rsb_d2.predict.video import predict_video
from rsb_d2.predict.video_reader import VideoReader, check_video, find_videos
from tests.helpers.runs.programs import only_error, program  # noqa: F401

"""Little videos."""

import cv2
import numpy as np

NUM_FRAMES, WIDTH, HEIGHT = 20, 161, 120
RATE = 10.0


def make_clip(path, num_frames=NUM_FRAMES, codec="mp4v"):
    """A red square that moves 4 pixels a frame, on noise below, which makes frames large."""
    size, rng = (WIDTH, HEIGHT), np.random.default_rng(0)
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*codec), RATE, size)
    for index in range(num_frames):
        frame = np.full((HEIGHT, WIDTH, 3), 40, dtype=np.uint8)
        frame[80:] = rng.integers(0, 120, frame[80:].shape)
        frame[20:60, 4 * index : 4 * index + 40] = (0, 0, 255)  # BGR
        writer.write(frame)
    writer.release()
    return path

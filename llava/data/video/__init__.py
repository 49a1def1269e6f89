"""Files of video and images to frames, and frames to pixel values."""

from llava.data.video.damage import check_decodable
from llava.data.video.decode import decoder_of, decoder_problem, read_frames, reader_versions
from llava.data.video.errors import FETCH_AGAIN, REENCODE, VideoError
from llava.data.video.image import read_image
from llava.data.video.probe import VideoInfo, probe_video
from llava.data.video.select import FRAME_RULE, segment_bounds, select_frames
from llava.data.video.transforms import frames_to_pixels

__all__ = [
    "FETCH_AGAIN",
    "FRAME_RULE",
    "REENCODE",
    "VideoError",
    "VideoInfo",
    "check_decodable",
    "decoder_of",
    "decoder_problem",
    "frames_to_pixels",
    "probe_video",
    "read_frames",
    "read_image",
    "reader_versions",
    "segment_bounds",
    "select_frames",
]

"""Reading and writing: every format and depth comes back as it went, every bad file says what is wrong."""

import io

import cv2
import numpy as np
import PIL.Image
import PIL.ImageCms
import pytest
import tifffile

from tiepoint.images import Image, ImageError, Metadata, read_image, suffix_for, write_image

RNG = np.random.default_rng(0)


def pixels(dtype, channels):
    shape = (37, 53) if channels == 1 else (37, 53, channels)
    if dtype == np.float32:
        return RNG.normal(0, 100, shape).astype(dtype)
    return RNG.integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


LOSSLESS = [
    (suffix, dtype, channels)
    for suffix, dtypes in ((".png", (np.uint8, np.uint16)), (".tif", (np.uint8, np.uint16, np.float32)))
    for dtype in dtypes
    for channels in (1, 3, 4)
] + [(".bmp", np.uint8, 3), (".webp", np.uint8, 3), (".webp", np.uint8, 4)]


@pytest.mark.parametrize(("suffix", "dtype", "channels"), LOSSLESS)
def test_lossless_round_trip_keeps_pixels_resolution_and_profile(tmp_path, suffix, dtype, channels):
    profile = PIL.ImageCms.ImageCmsProfile(PIL.ImageCms.createProfile("sRGB")).tobytes()
    metadata = Metadata(resolution_dpi=(300.0, 300.0), icc_profile=profile)
    image = Image(pixels(dtype, channels), metadata=metadata)
    write_image(tmp_path / f"a{suffix}", image)
    again = read_image(tmp_path / f"a{suffix}")
    assert again.pixels.dtype == dtype
    np.testing.assert_array_equal(again.pixels, image.pixels)
    if suffix in (".png", ".tif"):
        assert again.metadata.resolution_dpi == pytest.approx((300, 300), abs=0.02)
        assert again.metadata.icc_profile == profile
    assert [p.name for p in tmp_path.iterdir()] == [f"a{suffix}"]


def test_jpeg_round_trip(tmp_path):
    smooth = cv2.GaussianBlur(pixels(np.uint8, 3), (0, 0), 4)
    write_image(tmp_path / "a.jpg", Image(smooth, metadata=Metadata(resolution_dpi=(72, 72))))
    again = read_image(tmp_path / "a.jpg")
    assert np.abs(again.pixels.astype(int) - smooth).mean() < 2
    assert again.metadata.resolution_dpi == (72, 72)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_exif_orientation_is_undone(tmp_path, orientation, suffix):
    picture = np.zeros((32, 48, 3), np.uint8)
    picture[:12, :20] = 250  # bright corner: top left
    stored = PIL.Image.fromarray(picture)
    turns = {
        2: "FLIP_LEFT_RIGHT", 3: "ROTATE_180", 4: "FLIP_TOP_BOTTOM", 5: "TRANSPOSE",
        6: "ROTATE_90", 7: "TRANSVERSE", 8: "ROTATE_270",
    }  # fmt: skip
    if orientation in turns:
        stored = stored.transpose(PIL.Image.Transpose[turns[orientation]])
    exif = PIL.Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    if suffix == ".tif":
        stored.save(path, tiffinfo={0x0112: orientation})
    else:
        stored.save(path, exif=exif, **({"quality": 95} if suffix == ".jpg" else {}))
    np.testing.assert_allclose(read_image(path).pixels.astype(int), picture, atol=60 if suffix != ".png" else 0)


def test_palette_grey_alpha_and_bilevel(tmp_path):
    colours = PIL.Image.fromarray(pixels(np.uint8, 3)).quantize(16)
    colours.save(tmp_path / "p.png")
    np.testing.assert_array_equal(read_image(tmp_path / "p.png").pixels, np.asarray(colours.convert("RGB")))
    grey_alpha = PIL.Image.fromarray(pixels(np.uint8, 1)).convert("LA")
    grey_alpha.save(tmp_path / "la.png")
    np.testing.assert_array_equal(read_image(tmp_path / "la.png").pixels, np.asarray(grey_alpha.convert("RGBA")))
    bilevel = PIL.Image.fromarray(pixels(np.uint8, 1) > 127)
    bilevel.save(tmp_path / "b.png")
    np.testing.assert_array_equal(read_image(tmp_path / "b.png").pixels, np.asarray(bilevel.convert("L")))


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
def test_min_is_white_tiff_is_shown_as_meant(tmp_path, dtype):
    grey = pixels(dtype, 1)
    tifffile.imwrite(tmp_path / "a.tif", grey, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").pixels, np.iinfo(dtype).max - grey)


def test_min_is_white_tiff_of_floats_is_turned_round_in_its_own_range(tmp_path):
    grey = np.array([[-1.0, 0.0], [1.0, 3.0]], np.float32)
    tifffile.imwrite(tmp_path / "a.tif", grey, photometric="miniswhite")
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").pixels, [[3, 2], [1, -1]])


@pytest.mark.parametrize(
    ("photometric", "channels", "named"), [("separated", 4, "CMYK"), ("cielab", 3, "CIELab"), ("ycbcr", 3, "YCbCr")]
)
def test_tiff_in_colours_that_are_no_rgb_is_refused_by_name(tmp_path, photometric, channels, named):
    tifffile.imwrite(tmp_path / "a.tif", pixels(np.uint8, channels), photometric=photometric)
    with pytest.raises(ImageError, match=rf"a\.tif: is a {named} TIFF; convert it to RGB"):
        read_image(tmp_path / "a.tif")


def test_jpeg_compressed_ycbcr_tiff_is_rgb(tmp_path):
    orange = np.full((32, 48, 3), (240, 130, 20), np.uint8)
    luma_chroma = np.asarray(PIL.Image.fromarray(orange).convert("YCbCr"))
    tifffile.imwrite(tmp_path / "a.tif", luma_chroma, photometric="ycbcr", compression="jpeg")
    assert np.abs(read_image(tmp_path / "a.tif").pixels.astype(int) - orange).max() <= 3


def test_cmyk_jpeg_becomes_rgb_without_the_profile_of_its_inks(tmp_path):
    PIL.Image.new("CMYK", (16, 16)).save(tmp_path / "a.jpg", icc_profile=b"of inks")
    image = read_image(tmp_path / "a.jpg")
    assert (image.pixels >= 250).all()  # no ink: white
    assert image.metadata.icc_profile is None


@pytest.mark.parametrize(
    ("name", "dtype", "value"),
    [("XResolution", "H", 300), ("YResolution", "f", 300.0), ("ResolutionUnit", "s", "inch")],
)
def test_a_tiff_resolution_of_the_wrong_type_is_passed_over(tmp_path, name, dtype, value):
    grey = pixels(np.uint8, 1)
    tifffile.imwrite(tmp_path / "a.tif", grey, metadata=None, resolution=(300, 300), resolutionunit="inch")
    with tifffile.TiffFile(tmp_path / "a.tif", mode="r+") as file:
        file.pages.first.tags[name].overwrite(value, dtype=dtype)
    image = read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(image.pixels, grey)
    assert image.metadata.resolution_dpi is None


def test_a_tiff_orientation_that_is_no_number_means_upright(tmp_path):
    grey = pixels(np.uint8, 1)
    tifffile.imwrite(tmp_path / "a.tif", grey, metadata=None, extratags=[(274, "s", 0, "up", True)])
    np.testing.assert_array_equal(read_image(tmp_path / "a.tif").pixels, grey)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".bmp"])
@pytest.mark.parametrize("dpi", [1e-9, 70_000.0, 3e9, 1e11])
def test_a_resolution_the_format_has_no_room_for_is_left_out(tmp_path, suffix, dpi):
    write_image(tmp_path / f"a{suffix}", Image(pixels(np.uint8, 1), metadata=Metadata(resolution_dpi=(dpi, dpi))))
    assert read_image(tmp_path / f"a{suffix}").pixels.shape == (37, 53)


def test_a_picture_too_wide_for_its_format_takes_another(tmp_path):
    wide = Image(np.zeros((1, 16384, 3), np.uint8), path=tmp_path / "a.webp")
    with pytest.raises(ValueError, match="16384 x 1"):
        write_image(tmp_path / "a.webp", wide)
    assert suffix_for(wide) == ".png"


def test_the_longest_name_the_disk_takes_can_be_written(tmp_path):
    name = "é" * 125 + ".png"  # 254 bytes of at most 255
    write_image(tmp_path / name, Image(pixels(np.uint8, 1)))
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_lzw_and_palette_tiff(tmp_path):
    colour = PIL.Image.fromarray(pixels(np.uint8, 3))
    colour.save(tmp_path / "lzw.tif", compression="tiff_lzw")
    np.testing.assert_array_equal(read_image(tmp_path / "lzw.tif").pixels, np.asarray(colour))
    palette = colour.quantize(8)
    palette.save(tmp_path / "p.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "p.tif").pixels, np.asarray(palette.convert("RGB")))


def test_heic(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    smooth = cv2.GaussianBlur(pixels(np.uint8, 3), (0, 0), 5)
    heif.from_pillow(PIL.Image.fromarray(smooth)).save(tmp_path / "a.heic", quality=95)
    assert np.abs(read_image(tmp_path / "a.heic").pixels.astype(int) - smooth).mean() < 4


def encoded(kind):
    buffer = io.BytesIO()
    PIL.Image.fromarray(pixels(np.uint8, 3)).save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "BMP", "WEBP"])
@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_truncated_files_are_errors_that_name_the_file(tmp_path, kind, part):
    path = tmp_path / "half.bin"
    data = encoded(kind)
    path.write_bytes(data[: int(part * len(data))])
    with pytest.raises(ImageError, match=r"half\.bin"):
        read_image(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"hello, this is text", "not an image"),
        (b"GIF89a" + bytes(40), "damaged|GIF|not an image"),
    ],
)
def test_what_is_no_image(tmp_path, content, message):
    (tmp_path / "x.jpg").write_bytes(content)
    with pytest.raises(ImageError, match=message):
        read_image(tmp_path / "x.jpg")


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ImageError, match="No such file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(ImageError, match="directory"):
        read_image(tmp_path)


def test_too_large_is_refused_before_decoding_and_the_limit_can_be_raised(tmp_path):
    write_image(tmp_path / "a.png", Image(np.zeros((100, 200), np.uint8)))
    with pytest.raises(ImageError, match="--max-pixels"):
        read_image(tmp_path / "a.png", max_pixels=19_999)
    assert read_image(tmp_path / "a.png", max_pixels=20_000).size == (200, 100)


def test_formats_that_cannot_hold_an_image_say_so(tmp_path):
    deep = Image(pixels(np.uint16, 3))
    with pytest.raises(ValueError, match=r"uint16 pixels; use \.png or \.tif"):
        write_image(tmp_path / "a.jpg", deep)
    with pytest.raises(ValueError, match="transparency"):
        write_image(tmp_path / "a.jpg", Image(pixels(np.uint8, 4)))
    assert suffix_for(deep) == ".png"
    assert list(tmp_path.iterdir()) == []

"""`lotus-edge bag`: depth, normals and points of the camera in a ROS bag."""

"""A ROS 2 node, for people who have rclpy."""

"""What people do with a bundle. Apps import `runtime`, never `export`."""

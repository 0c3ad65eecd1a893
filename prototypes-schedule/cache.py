import sys,time,pickle

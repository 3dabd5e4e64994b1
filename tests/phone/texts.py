"""What phones print, as the code under test reads it."""

CORES = "\n".join(
    [f"cpu{n} 1704000 160 sched_pixel" for n in range(4)]
    + [f"cpu{n} 2367000 600 sched_pixel" for n in range(4, 8)]
    + ["cpu8 2914000 1024 sched_pixel"]
)
HOT = """\
IsStatusOverride: false
Thermal Status: 2
Cached temperatures:
	Temperature{mValue=99.5, mType=3, mName=VIRTUAL-SKIN, mStatus=3}
HAL Ready: true
Current temperatures from HAL:
	Temperature{mValue=71.0, mType=0, mName=BIG, mStatus=0}
	Temperature{mValue=38.25, mType=3, mName=VIRTUAL-SKIN, mStatus=2}
	Temperature{mValue=37.0, mType=3, mName=VIRTUAL-SKIN-HINT, mStatus=0}
Current cooling devices from HAL:
	CoolingDevice{mValue=0, mType=2, mName=thermal-cpufreq-0}
	CoolingDevice{mValue=3, mType=2, mName=thermal-cpufreq-2}
"""
COOL = "Thermal Status: 0\n"
